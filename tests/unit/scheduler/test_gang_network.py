"""Connected gangs: placed where members reach each other, told under which address, and started in order."""

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from services.scheduler.core import gang_wiring
from services.scheduler.core.desired import desired_state
from services.scheduler.core.explain import explain
from services.scheduler.core.limits import Limits
from shared.fleet import Wiring
from shared.job import Job
from shared.spec import GIB, JobSpec
from shared.states import AttemptState, EndReason, JobState, PendingCode

SMALL = {"cpus": 1, "memory": GIB, "disk": GIB}
ROLES = {"ps": {"count": 1, "ports": 2, "resources": SMALL}, "worker": {"count": 2, "resources": {"cpus": 3}}}


@pytest.fixture
def world(make: SimpleNamespace) -> Any:
    return make.World()


def hear(world: Any, make: SimpleNamespace, node: str, **info: Any) -> None:
    world.beats += 1
    world.turn(beats=(make.beat(node, seq=world.beats, **info),))


def start(world: Any, make: SimpleNamespace, job_id: str = "g1", **spec: Any) -> Job:
    wanted = {"connected": True, "roles": ROLES} | spec.pop("gang", {})
    fields = {"runtime": "docker", "image": "busybox"} | spec
    world.turn(world.create(make.job(job_id, kind="gang", gang=wanted, **fields)))
    world.settle()
    return world.job(job_id)


def hosts(job: Job) -> list[tuple[str, str, int]]:
    return [(one.node, one.host, one.port) for one in job.members]


def orders(world: Any, make: SimpleNamespace, job: Job) -> dict[str, Wiring | None]:
    """Return the members that are to be started, each with how it reaches the others."""
    found: dict[str, Wiring | None] = {}
    for node in dict.fromkeys(one.node for one in job.members):
        for one in desired_state(world.state, node, 1, make.at(world.now)).assignments:
            if one.action == "start" and one.order is not None:
                found[one.job_id] = one.order.wiring
    return found


def report(world: Any, job: Job, rank: int, data: Any) -> None:
    member = job.members[rank]
    world.turn(world.report(member.node, member.job_id, data))
    world.settle()


def test_a_gang_that_fits_on_one_engine_shares_a_bridge_even_over_two_nodes_of_it(world: Any, make: SimpleNamespace):
    hear(world, make, "n1", engine_id="e1")
    hear(world, make, "n2", engine_id="e2")
    hear(world, make, "n3", engine_id="e2")
    job = start(world, make)
    assert job.network == "bridge"
    assert {one.node for one in job.members} == {"n2", "n3"}
    assert [(one.host, one.port) for one in job.members] == [("ps-0", 2222), ("worker-0", 2222), ("worker-1", 2222)]


def test_else_it_goes_to_nodes_whose_network_it_may_have_and_everyone_is_told_everyone(
    world: Any, make: SimpleNamespace
):
    hear(world, make, "n1", engine_id="e1")
    hear(world, make, "n2", engine_id="e2", address="10.0.0.2", host_network=True)
    hear(world, make, "n3", engine_id="e3", address="10.0.0.3", host_network=True)
    job = start(world, make)
    assert job.network == "host"
    assert {host for _, host, _ in hosts(job)} == {"10.0.0.2", "10.0.0.3"}
    told = orders(world, make, job)
    assert len(told) == 3
    for rank, member in enumerate(job.members):
        wiring = told[member.job_id]
        assert wiring is not None
        assert (wiring.gang_id, wiring.round, wiring.network, wiring.rank) == ("g1", 1, "host", rank)
        assert [(peer.role, peer.index, peer.rank, peer.host, peer.port, peer.ports) for peer in wiring.peers] == [
            (one.role, one.index, at, one.host, one.port, 2 if one.role == "ps" else 1)
            for at, one in enumerate(job.members)
        ]


def test_members_and_gangs_on_one_address_have_ports_of_their_own(world: Any, make: SimpleNamespace):
    for node in ("n1", "n2"):  # two agents on one machine
        hear(world, make, node, address="127.0.0.1", cpus=16)
    roles = {"worker": {"count": 8, "ports": 3, "resources": {"cpus": 1}}}
    jobs = [start(world, make, f"g{n}", runtime="process", image=None, gang={"roles": roles}) for n in range(1, 4)]
    used = [port + offset for job in jobs for _, _, port in hosts(job) for offset in range(3)]
    assert len(used) == len(set(used)) == 3 * 8 * 3
    first, last = Limits().gang_ports
    assert all(first <= port <= last for port in used)


def test_ports_go_round_at_the_end_of_their_range_and_there_may_be_none_left(make: SimpleNamespace):
    world = make.World(Limits(gang_ports=(1000, 1009)))
    hear(world, make, "n1", address="127.0.0.1", cpus=64)
    roles = {"worker": {"count": 3, "ports": 3, "resources": {"cpus": 1}}}
    plain: dict[str, Any] = {"runtime": "process", "image": None, "gang": {"roles": roles}}
    first = start(world, make, **plain)
    used = {port + offset for _, _, port in hosts(first) for offset in range(3)}
    assert used <= set(range(1000, 1010))
    assert len(used) == 9 or first.state is JobState.QUEUED
    second = start(world, make, "g2", **plain)
    assert second.state is JobState.QUEUED


def test_who_wants_to_spread_is_spread_over_the_nodes_networks(world: Any, make: SimpleNamespace):
    for number in (1, 2, 3):
        hear(world, make, f"n{number}", engine_id=f"e{number}", address=f"10.0.0.{number}", host_network=True, cpus=16)
    job = start(world, make, placement={"policy": "spread"})
    assert job.network == "host"
    assert len({one.node for one in job.members}) == 3
    packed = start(world, make, "g2")
    assert packed.network == "bridge"
    assert len({one.node for one in packed.members}) == 1


def test_an_address_of_the_machine_itself_is_no_way_to_another_machine(world: Any, make: SimpleNamespace):
    hear(world, make, "n1", address="127.0.0.1")
    hear(world, make, "n2", address="10.0.0.2")
    job = start(world, make, runtime="process", image=None)
    assert job.state is JobState.QUEUED
    hear(world, make, "n3", address="10.0.0.3")
    world.settle()
    assert {one.node for one in world.job("g1").members} == {"n2", "n3"}


def test_a_gang_that_fits_only_where_it_is_not_connected_waits_and_is_told_what_to_do(
    world: Any, make: SimpleNamespace
):
    for number in (1, 2):
        hear(world, make, f"n{number}", engine_id=f"e{number}", address=f"10.0.0.{number}")
    start(world, make)
    world.now = 10.0
    hear(world, make, "n1", engine_id="e1", address="10.0.0.1")
    hear(world, make, "n2", engine_id="e2", address="10.0.0.2")
    world.turn(tick=True)
    job = world.job("g1")
    assert [reason.code for reason in job.pending] == [PendingCode.GANG_NETWORK]
    assert "--host-network" in job.pending[0].message
    told = explain(world.state, world.state.jobs["g1"], make.at(world.now))
    assert not told.would_start
    assert "0 nodes offer that" in told.text
    for number in (1, 2):
        hear(world, make, f"n{number}", engine_id=f"e{number}", address=f"10.0.0.{number}", host_network=True)
    world.settle()
    assert world.job("g1").network == "host"


def test_a_gang_that_can_never_be_connected_holds_up_nobody(make: SimpleNamespace):
    world = make.World(Limits(reserve_outright_s=5))
    for number in (1, 2):
        hear(world, make, f"n{number}", engine_id=f"e{number}")
    start(world, make)
    for now in (10.0, 20.0, 30.0):
        world.now = now
        for number in (1, 2):
            hear(world, make, f"n{number}", engine_id=f"e{number}")
        world.turn(tick=True)
    world.turn(world.create(make.job("j1", resources={"cpus": 4})))
    world.settle()
    assert world.job("j1").state is JobState.PLACED


def test_who_starts_after_others_is_withheld_until_all_of_those_run_and_its_node_is_woken(
    world: Any, make: SimpleNamespace
):
    hear(world, make, "n1", engine_id="e1", cpus=16)
    roles = {"worker": {"count": 1, "start_after": ["ps"]}, "ps": {"count": 2}}
    job = start(world, make, gang={"roles": roles})
    worker, *servers = (one.job_id for one in job.members)
    assert set(orders(world, make, job)) == set(servers)
    report(world, job, 1, make.starting())
    report(world, job, 1, make.running())
    assert worker not in orders(world, make, job)
    report(world, job, 2, make.starting())
    hear(world, make, "n1", engine_id="e1", cpus=16, held=tuple((one, 1) for one in servers))
    world.woken.clear()
    report(world, job, 2, make.running())
    assert worker in orders(world, make, job)
    assert "n1" in world.woken


def test_who_is_withheld_is_not_given_up_before_its_gang_is(world: Any, make: SimpleNamespace):
    roles = {"ps": {"count": 1}, "worker": {"count": 1, "start_after": ["ps"]}}
    hear(world, make, "n1", engine_id="e1", cpus=16)
    job = start(world, make, gang={"roles": roles, "deadline": 3000})
    server, worker = (one.job_id for one in job.members)
    report(world, job, 0, make.starting())
    for now in (200.0, 400.0, 600.0):  # longer than a node that is heard has for taking an attempt
        world.now = now
        for _ in range(3):
            hear(world, make, "n1", engine_id="e1", cpus=16, held=((server, 1),))
        world.turn(tick=True)
        world.settle()
    assert world.job(worker).state is JobState.PLACED
    found = desired_state(world.state, "n1", 1, make.at(world.now)).assignments
    assert not [one for one in found if one.action == "stop"]


def test_one_that_has_ended_well_counts_as_having_run(world: Any, make: SimpleNamespace):
    roles = {"prepare": {"count": 1}, "worker": {"count": 1, "start_after": ["prepare"]}}
    hear(world, make, "n1", engine_id="e1", cpus=16)
    job = start(world, make, gang={"roles": roles})
    report(world, job, 0, make.finished(state=AttemptState.SUCCEEDED))
    assert set(orders(world, make, job)) == {job.members[1].job_id}


def test_another_round_has_other_ports(world: Any, make: SimpleNamespace):
    for number in (1, 2):
        hear(world, make, f"n{number}", address=f"10.0.0.{number}")
    job = start(world, make, runtime="process", image=None)
    before = hosts(job)
    report(world, job, 0, make.finished(state=AttemptState.FAILED, reason=EndReason.AGENT_LOST_CONTAINER))
    for rank in (1, 2):
        report(world, job, rank, make.finished(state=AttemptState.CANCELLED))
    world.now = 60.0
    for number in (1, 2):
        hear(world, make, f"n{number}", address=f"10.0.0.{number}")
    world.settle()
    again = world.job("g1")
    assert again.attempt == 2
    assert not {port for _, _, port in before} & {port for _, _, port in hosts(again)}
    told = gang_wiring.wiring(world.state, world.job(again.members[0].job_id))
    assert told is not None
    assert told.round == 2


@pytest.mark.parametrize(
    ("after", "said"),
    [({"a": ["b"], "b": ["a"]}, "circle among a, b"), ({"a": ["a"]}, "circle among a"), ({"a": ["c"]}, "'c'")],
)
def test_an_order_of_starting_that_cannot_be_is_refused(after: dict[str, list[str]], said: str):
    roles = {name: {"start_after": after.get(name, [])} for name in ("a", "b")}
    with pytest.raises(ValidationError, match=said):
        JobSpec.model_validate({"kind": "gang", "runtime": "process", "command": "x", "gang": {"roles": roles}})
