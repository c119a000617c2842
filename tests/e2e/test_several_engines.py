"""A fleet of three machines, each with an engine of its own, on one: inputs stay where they are, gangs reach across."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.ports import free_port
from tests.e2e.conftest import BUSYBOX
from tests.e2e.stack import ROOT, Stack, until
from tests.e2e.test_trainings import EXAMPLE, FINAL, User, fields
from tests.engines import Engine, Engines, why_not
from tests.integration.agent_stack import busybox

pytestmark = [pytest.mark.slow, pytest.mark.docker, pytest.mark.timeout(400)]
#: Serves one line on its own port until it is killed.
SERVE = 'while true; do echo "I am $WHERRY_ROLE-$WHERRY_INDEX" | nc -l -p "$WHERRY_PORT"; done'
#: Asks every member of the role `ps` for its line, as TF_CONFIG has them, and then goes on as told.
ASK = """
for one in $(echo "$TF_CONFIG" | sed 's/.*"ps":\\[\\([^]]*\\)\\].*/\\1/' | tr -d '"' | tr ',' ' '); do
  until nc -w 3 "${one%:*}" "${one##*:}" < /dev/null > /tmp/said 2> /dev/null && [ -s /tmp/said ]; do sleep 0.3; done
  cat /tmp/said
done
"""
TINY = {"cpus": 0.1, "memory": "32MiB", "disk": "64MiB"}
#: What each machine's agent is told.
AGENT = {"WHERRY_HOST_NETWORK": "1", "WHERRY_CAPACITY": "cpus=1"}
#: To bring so much counts for more than that another node is emptier, and less busy at the moment.
INPUT_BYTES = 64_000_000


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    if reason := why_not():
        pytest.skip(reason)
    busybox()
    with Engines(3) as engines:
        for one in engines:
            one.load(BUSYBOX)
        yield engines


@pytest.fixture(scope="module")
def fleet(engines: Engines) -> Iterator[Stack]:
    """A wherry whose own node runs no containers: they go to the three engines."""
    home = Path(tempfile.mkdtemp(prefix="wherry-engines-"))
    settings = {
        "WHERRY_RUNTIMES": "process",
        "WHERRY_STORAGE_METRICS_PORT": str(free_port()),
        "WHERRY_SCHEDULER_NODE_LEASE_S": "12",
        "WHERRY_SCHEDULER_HEARTBEAT_INTERVAL_S": "0.5",
        "WHERRY_SCHEDULER_BACKOFF_FAILURE_S": "0.5",
    }
    stack = Stack.start(home, runtime="docker", image=BUSYBOX, env=settings, engines=list(engines))
    try:
        stack.join(*engines, **AGENT)
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(home, ignore_errors=True)


def bytes_sent(stack: Stack) -> int:
    """Return the bytes of blobs that storage has given away so far."""
    text = httpx.get(f"http://127.0.0.1:{stack.env['WHERRY_STORAGE_METRICS_PORT']}/metrics").text
    line = next(line for line in text.splitlines() if line.startswith("wherry_storage_blob_bytes_sent_total "))
    return int(float(line.split()[1]))


def held_by(stack: Stack, key: str) -> set[str]:
    """Return the nodes that keep an input."""
    nodes = {name: stack.node(name) for name in stack.agents}
    return {name for name, node in nodes.items() if any(one["key"] == key for one in node["inputs"])}


def held_on(stack: Stack, node: str, cpus: float) -> dict[str, Any]:
    """Keep CPUs of a node busy with nothing."""
    spec = stack.spec("sleep 600", resources=TINY | {"cpus": cpus}, placement={"node": node})
    return stack.wait_state(stack.submit(spec), "running")


@contextmanager
def room_for_one_each(stack: Stack, engines: Engines) -> Iterator[None]:
    """Leave room for one member of 0.4 CPUs on each machine: else two may be together where it is less busy."""
    kept = [held_on(stack, engine.name, cpus=0.4)["job_id"] for engine in engines]
    yield
    for job_id in kept:
        stack.http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    for job_id in kept:
        stack.wait_end(job_id)


def on(job: dict[str, Any]) -> str:
    return job["attempts"][-1]["node"]


def test_a_second_job_starts_where_its_input_is_and_when_that_is_full_it_is_moved_once(fleet: Stack) -> None:
    content = os.urandom(INPUT_BYTES)
    artifact = fleet.http.put("/artifacts", content=content).json()
    inputs = {"data": {"source": f"artifact:{artifact['artifact_id']}", "unpack": False}}
    count = fleet.spec('wc -c < "$WHERRY_INPUTS/data"', inputs=inputs, resources=TINY, placement={"policy": "spread"})

    def run() -> str:
        job_id = fleet.submit(count)
        job = fleet.wait_end(job_id)
        assert job["state"] == "succeeded", job
        assert fleet.output(job_id, "_stdout.txt").strip() == str(INPUT_BYTES).encode()
        return on(job)

    def moved_by(expected: set[str]) -> tuple[str, int]:
        before = bytes_sent(fleet)
        node = run()
        until(lambda: held_by(fleet, artifact["sha256"]) == expected | {node}, "the heartbeats say who keeps it")
        return node, round((bytes_sent(fleet) - before) / INPUT_BYTES)

    first, moved = moved_by(set())
    assert moved == 1
    assert held_on(fleet, first, cpus=0.2)  # who spreads would go elsewhere for that alone
    for _ in range(3):
        assert moved_by({first}) == (first, 0)
    assert held_on(fleet, first, cpus=0.8)
    second, moved = moved_by({first})
    assert second != first
    assert moved == 1
    assert moved_by({first, second}) == (second, 0)
    for job in fleet.http.get("/jobs", params={"state": "running"}).json()["jobs"]:
        fleet.http.post(f"/jobs/{job['job_id']}/cancel").raise_for_status()
        fleet.wait_end(job["job_id"])


def gang(fleet: Stack, after: str = "", **more: Any) -> dict[str, Any]:
    """Return two servers and a worker that asks both, each on a node of its own."""
    wide = TINY | {"cpus": 0.6}
    roles = {
        "ps": {"count": 2, "command": SERVE, "resources": wide},
        "worker": {"count": 1, "command": ASK + after, "resources": wide, "start_after": ["ps"]},
    }
    wanted = {"connected": True, "roles": roles} | more.pop("gang", {})
    return fleet.spec("true", kind="gang", gang=wanted, **more)


def log_of(fleet: Stack, member: dict[str, Any]) -> str:
    answer = fleet.http.get(f"/jobs/{member['job_id']}/logs", headers={"Accept": "text/plain"})
    return answer.text


def test_members_on_three_machines_reach_each_other_and_one_failure_ends_all(fleet: Stack) -> None:
    gang_id = fleet.submit(gang(fleet, "exit 7"))
    job = fleet.wait_end(gang_id)
    assert (job["state"], job["error"]["reason"]) == ("failed", "exit_code"), job
    assert job["error"]["message"].startswith("member worker-0: ")
    assert len({one["node"] for one in job["members"]}) == 3
    assert [one["state"] for one in job["members"]] == ["cancelled", "cancelled", "failed"]
    worker = job["members"][-1]["job_id"]
    assert fleet.output(worker, "_stdout.txt").decode() == "I am ps-0\nI am ps-1\n"


@pytest.mark.timeout(400)
def test_a_link_that_is_cut_ends_all_and_says_why_and_another_round_runs_on_what_is_left(
    fleet: Stack, engines: Engines
) -> None:
    small = {"roles": gang(fleet)["gang"]["roles"]}
    for role in small["roles"].values():
        role["resources"] = TINY | {"cpus": 0.4}
    small["roles"]["worker"]["command"] = ASK + "sleep 300"
    with room_for_one_each(fleet, engines):
        gang_id = fleet.submit(gang(fleet, gang=small, placement={"policy": "spread"}))
        job = fleet.wait_state(gang_id, "running")
    assert len({one["node"] for one in job["members"]}) == 3
    lost = job["members"][0]["node"]
    [engine] = [one for one in engines if one.name == lost]
    with engine.away():
        until(lambda: fleet.job(gang_id).get("attempts"), "the first round is over")
        told = fleet.job(gang_id)
        assert told["attempts"][0]["error"]["reason"] == "node_lost"
        assert told["attempts"][0]["error"]["message"].startswith("member ps-0: ")
        again = fleet.wait_state(gang_id, "running")
        assert lost not in {one["node"] for one in again["members"]}
        worker = again["members"][-1]["job_id"]
        until(lambda: "I am ps-1" in log_of(fleet, again["members"][-1]), f"{worker} reaches both")
    fleet.http.post(f"/jobs/{gang_id}/cancel").raise_for_status()
    assert fleet.wait_end(gang_id)["state"] == "cancelled"
    until(lambda: fleet.node(lost)["condition"] == "online", "the node is back")
    until(lambda: not engine.docker("ps", "-q"), "what ran there is gone")


@pytest.fixture(scope="module")
def user(fleet: Stack, engines: Engines) -> Iterator[User]:
    """Somebody who trains; the image for that is on all machines."""
    built = subprocess.run([ROOT / "infra/docker/build-training.sh"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr[-3000:]
    for one in engines:
        one.load("wherry/training")
    user = User(fleet)
    yield user
    user.session.close()


@pytest.fixture(scope="module")
def training(user: User) -> dict[str, Any]:
    """A real training on digits, distributed over one server and two workers."""
    with (EXAMPLE / "data" / "digits.csv").open("rb") as file:
        answer = user.session.put(f"{user.url}/artifacts", data=file, timeout=60)
    assert answer.status_code == 201, answer.text
    return {
        "dataset": answer.json()["artifact_id"],
        "params": {"epochs": 5},
        "distributed": {"parameter_servers": 1, "workers": 2},
        **fields(),
    }


def test_a_training_over_three_machines_comes_to_the_loss_of_one(user: User, training: dict[str, Any]) -> None:
    wide = {"cpus": 0.6, "memory": "128MiB", "disk": "64MiB"}
    together = user.ended(user.train(**{**training, "resources": wide}))
    alone = user.ended(user.train(**{**training, "distributed": None}))
    assert (together["status"], alone["status"]) == ("completed", "completed"), (together, alone)
    assert len({member["node"] for member in together["members"]}) == 3
    assert together["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-6)


@pytest.fixture(scope="module")
def long(training: dict[str, Any]) -> dict[str, Any]:
    """The same, for long enough that something may happen to it; two machines have room for it too."""
    small = {"cpus": 0.4, "memory": "128MiB", "disk": "64MiB"}
    return {**training, "params": {"epochs": 300}, "resources": small, "placement": {"policy": "spread"}}


def under_way(user: User, wish: dict[str, Any], fleet: Stack, engines: Engines) -> tuple[str, Engine]:
    """Begin to train on three machines; return the training, and the machine of its second worker, once it learns."""
    with room_for_one_each(fleet, engines):
        training_id = user.train(**wish)
        shown = user.poll(training_id, lambda shown: shown["progress"])
    assert len({member["node"] for member in shown["members"]}) == 3
    node = next(one["node"] for one in shown["members"] if (one["role"], one["index"]) == ("worker", 1))
    return training_id, next(one for one in engines if one.name == node)


def test_a_training_that_loses_a_machine_begins_anew_on_the_others_and_says_so(
    user: User, long: dict[str, Any], fleet: Stack, engines: Engines
) -> None:
    impatient = long["helpers"].replace("connection.settimeout(PATIENCE_S)", "connection.settimeout(5)")
    assert impatient != long["helpers"]  # the others fail of the cut before the machine is given up
    training_id, lost = under_way(user, long | {"helpers": impatient}, fleet, engines)
    with lost.away():
        until(lambda: fleet.job(training_id).get("attempts"), "the first round is over")
        first = fleet.job(training_id)["attempts"][0]
        assert (first["error"]["reason"], first["error"]["message"][:15]) == ("node_lost", "member worker-1"), first
        done = user.poll(training_id, lambda shown: shown["status"] in FINAL)
    assert done["status"] == "completed", done
    assert lost.name not in {member["node"] for member in done["members"]}
    assert f"round 1 is over: {first['error']['message']}; all begin anew" in done["remarks"]
    assert done["metrics"]["accuracy"] > 0.9
    is_back(fleet, lost)


def test_a_training_that_is_to_end_with_a_machine_fails_and_says_which(
    user: User, long: dict[str, Any], fleet: Stack, engines: Engines
) -> None:
    wish = {**long, "distributed": {**long["distributed"], "on_loss": "stop"}, "max_attempts": 3}
    training_id, lost = under_way(user, wish, fleet, engines)
    with lost.away():
        done = user.poll(training_id, lambda shown: shown["status"] in FINAL)
    assert (done["status"], done["error"]["reason"]) == ("failed", "node_lost"), done
    assert done["error"]["message"].startswith(f"member worker-1: node {lost.name} was not heard for ")
    assert {(one["role"], one["index"]): one["state"] for one in done["members"]} == {
        ("worker", 0): "cancelled", ("worker", 1): "failed", ("ps", 0): "cancelled",
    }  # fmt: skip
    is_back(fleet, lost)


def test_an_agent_that_is_killed_while_its_member_trains_finds_it_again(
    user: User, long: dict[str, Any], fleet: Stack, engines: Engines
) -> None:
    training_id, there = under_way(user, long, fleet, engines)
    before = there.docker("ps", "-q", "--no-trunc")
    fleet.agents[there.name].kill()
    fleet.agents[there.name].wait()
    fleet.join(there, **AGENT)
    assert there.docker("ps", "-q", "--no-trunc") == before != ""
    done = user.poll(training_id, lambda shown: shown["status"] in FINAL)
    assert (done["status"], fleet.job(training_id)["attempts"]) == ("completed", []), done
    is_back(fleet, there)


def test_trainings_at_the_same_time_on_the_same_machines_do_not_get_into_each_others_way(
    user: User, training: dict[str, Any], fleet: Stack, engines: Engines
) -> None:
    tiny = {"cpus": 0.2, "memory": "96MiB", "disk": "64MiB"}
    wish = {**training, "resources": tiny, "placement": {"policy": "spread"}}
    wide = [{"parameter_servers": 2, "workers": 3}, {"parameter_servers": 1, "workers": 4}, {"workers": 2}]
    begun = [user.train(**{**wish, "distributed": one}) for one in wide]
    done = [user.ended(one) for one in begun]
    assert [one["status"] for one in done] == ["completed"] * 3, done
    assert [fleet.job(one)["attempts"] for one in begun] == [[]] * 3  # nobody found a port taken
    losses = [one["metrics"]["loss"] for one in done]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    for engine in engines:
        is_back(fleet, engine)


def is_back(fleet: Stack, engine: Engine) -> None:
    """Wait until a machine is with the others again, and has nothing of what it ran."""
    until(lambda: fleet.node(engine.name)["condition"] == "online", "the node is back")
    until(lambda: not engine.docker("ps", "-aq"), "what ran there is gone")
    names = ("network", "ls", "--format", "{{.Name}}")
    until(lambda: not [one for one in engine.docker(*names).split() if "wherry" in one], "so are its networks")
