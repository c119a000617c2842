"""What an agent decides about replicas: when one runs, when it is given up, and what its container is."""

from datetime import UTC, datetime, timedelta

import pytest

from services.node_agent.adapters.own_container import id_in
from services.node_agent.core import effects as e
from services.node_agent.core import facts as f
from services.node_agent.core import machine as m
from services.node_agent.core.container import Key, Place, environment, job_container, network_name, replica_network
from services.node_agent.core.ending import Outcome
from services.node_agent.core.serving import MISSES_MAX, PAUSE_S, WARMUP_PAUSE_S, Budget, Door, Health, News, passed_on
from shared.fleet import Assignment, DesiredState, Order
from shared.spec import JobSpec, Service, Timeouts
from shared.states import AttemptEventName, AttemptState, EndReason

T0 = datetime(2026, 1, 1, tzinfo=UTC)
KEY = Key("j1", 1)
ORDER = Order(
    job_id="j1", owner_id="u1", attempt=1, seq=5, parent="jp",
    spec=JobSpec(image="i", command="serve", env={"PORT": "1", "MINE": "2"}, timeouts=Timeouts(run=30)),
    service=Service(port=8501, health="/ok", start_timeout=20),
)  # fmt: skip


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def assigned(action: str, **more: object) -> f.Desired:
    order = ORDER if action == "start" else None
    assignment = Assignment.model_validate({"job_id": "j1", "attempt": 1, "action": action, "order": order, **more})
    return f.Desired(DesiredState(epoch=1, assignments=(assignment,)))


def warming() -> m.Machine:
    machine = m.Machine(recovered={"docker"})
    for fact in (assigned("start"), f.ImageFound(KEY, None), f.Staged(KEY, "c1"), f.Started(KEY)):
        machine.handle(fact, T0)
    return machine


def names(effects: list[e.Effect]) -> list[str]:
    return [type(one).__name__ for one in effects]


def reports(effects: list[e.Effect]) -> list[e.Report]:
    return [one for one in effects if isinstance(one, e.Report)]


def test_a_replica_that_was_started_warms_up_and_runs_once_it_is_ready():
    machine = m.Machine(recovered={"docker"})
    for fact in (assigned("start"), f.ImageFound(KEY, None), f.Staged(KEY, "c1")):
        machine.handle(fact, T0)
    effects = machine.handle(f.Started(KEY), T0)
    assert names(effects) == ["Save", "Report", "Attend"]
    [report] = reports(effects)
    assert (report.name, getattr(report.data, "phase", "")) == (AttemptEventName.STARTING, "warmup")
    assert machine.attempts()[0].state == AttemptState.STARTING
    effects = machine.handle(f.Ready(KEY), at(3))
    assert names(effects) == ["Save", "Report"]
    assert reports(effects)[0].name is AttemptEventName.RUNNING
    assert machine.attempts()[0].state == AttemptState.RUNNING
    assert machine.handle(f.Ready(KEY), at(4)) == []


def test_a_replica_that_is_not_ready_in_time_is_stopped_as_unhealthy():
    machine = warming()
    assert machine.handle(f.Tick(), at(19)) == []
    assert names(machine.handle(f.Tick(), at(20))) == ["Save", "Stop"]
    assert machine.handle(f.Ready(KEY), at(21)) == []
    machine.handle(f.Exited(KEY, Outcome(0)), at(22))
    [report] = reports(machine.handle(f.Collected(KEY, None), at(23)))
    failure = getattr(report.data, "error", None)
    assert failure is not None
    assert failure.reason is EndReason.UNHEALTHY
    assert "GET /ok did not answer 2xx on port 8501" in failure.message


def test_a_replica_that_answers_no_more_is_stopped_once():
    machine = warming()
    machine.handle(f.Ready(KEY), at(1))
    effects = machine.handle(f.Unhealthy(KEY, "GET /ok answers 500."), at(9))
    assert names(effects) == ["Save", "Stop"]
    assert machine.handle(f.Unhealthy(KEY, "again"), at(10)) == []
    assert machine.held[KEY].stop is not None


def test_a_replica_has_no_limit_of_running():
    machine = warming()
    machine.handle(f.Ready(KEY), at(1))
    assert machine.handle(f.Tick(), at(10**6)) == []


@pytest.mark.parametrize("is_ready", [False, True])
def test_after_a_restart_of_the_agent_a_replica_is_attended_again(*, is_ready: bool):
    machine = warming()
    if is_ready:
        machine.handle(f.Ready(KEY), at(1))
    again = m.Machine(dict(machine.held), epoch=1)
    effects = again.handle(f.Recovered("docker", {KEY: ("c1", "started")}), at(2))
    assert names(effects) == ["Follow", "Attend"]


def test_a_replica_that_is_to_stop_is_not_attended_again():
    machine = warming()
    machine.handle(assigned("stop", grace_s=9), at(1))
    again = m.Machine(dict(machine.held), epoch=1)
    effects = again.handle(f.Recovered("docker", {KEY: ("c1", "started")}), at(2))
    assert names(effects) == ["Follow", "Stop"]


def test_a_replica_that_ends_while_it_warms_up_ends_as_any_program():
    machine = warming()
    effects = machine.handle(f.Exited(KEY, Outcome(3)), at(1))
    assert names(effects) == ["Save", "Report", "Collect"]
    assert machine.held[KEY].end
    assert machine.held[KEY].end.state is AttemptState.FAILED


# --- its container ---------------------------------------------------------------------------------------------------


def test_a_replica_has_a_network_of_its_own_out_of_which_nothing_leads():
    place = Place("s", "n1")
    body = job_container(place, ORDER, "sha256:1", pids_limit=8)
    network = replica_network(place, ORDER, is_joined=False)
    assert body["HostConfig"]["NetworkMode"] == network["Name"] == network_name(place, KEY)
    assert not body["NetworkDisabled"]
    assert network["Internal"] is True
    assert network["Labels"] == place.labels(KEY, "u1")
    assert body["HostConfig"]["Dns"] == ["127.0.0.1"]
    walled = replica_network(place, ORDER, is_joined=True)  # then its machine has no address in it either
    assert walled == network | {"Options": {"com.docker.network.bridge.inhibit_ipv4": "true"}}
    plain = job_container(place, ORDER.model_copy(update={"service": None}), "sha256:1", pids_limit=8)
    assert (plain["HostConfig"]["NetworkMode"], plain["NetworkDisabled"]) == ("none", True)


def test_a_replica_is_told_its_port_whatever_the_user_says():
    found = environment(ORDER)
    assert (found["PORT"], found["WHERRY_PORT"], found["MINE"]) == ("8501", "8501", "2")


def test_an_agent_in_a_container_knows_which_one():
    mine, other = "a" * 64, "b" * 64
    line = "1 2 254:1 /docker/containers/{}/{} {} rw,relatime - ext4 /dev/root rw\n"
    inside = line.format(mine, "resolv.conf", "/etc/resolv.conf") + line.format(mine, "hostname", "/etc/hostname")
    outside = line.format(other, "mounts/shm", f"/var/lib/docker/containers/{other}/mounts/shm")
    assert id_in(inside) == mine
    assert id_in(outside) is None


# --- health and requests ---------------------------------------------------------------------------------------------


def test_a_replica_is_ready_with_the_first_good_look_and_given_up_after_three_bad_ones_in_a_row():
    health = Health()
    assert [health.seen(is_well=False) for _ in range(9)] == [News.NOTHING] * 9
    assert health.pause_s == WARMUP_PAUSE_S
    assert health.seen(is_well=True) is News.READY
    assert health.pause_s == PAUSE_S
    assert health.seen(is_well=True) is News.NOTHING
    bad = [health.seen(is_well=False) for _ in range(MISSES_MAX - 1)]
    assert bad == [News.NOTHING] * (MISSES_MAX - 1)
    assert health.seen(is_well=True) is News.NOTHING
    bad = [health.seen(is_well=False) for _ in range(MISSES_MAX + 1)]
    assert bad == [News.NOTHING] * (MISSES_MAX - 1) + [News.UNHEALTHY, News.NOTHING]


def test_the_door_is_shut_before_a_replica_is_ready_and_once_it_goes():
    door = Door()
    assert door.refusal() == "replica_starting"
    door.is_open = True
    assert door.refusal() is None
    door.is_draining = True
    assert door.refusal() == "replica_draining"


def test_bodies_beyond_the_budget_are_not_taken_in():
    budget = Budget(10)
    assert budget.take(6)
    assert not budget.take(5)
    budget.give_back(6)
    assert budget.take(10)


def test_headers_of_a_connection_stay_with_it():
    headers = [("Host", "a"), ("Content-Length", "3"), ("Transfer-Encoding", "chunked"), ("X-Mine", "1"), ("TE", "x")]
    assert passed_on(headers) == (("X-Mine", "1"),)
