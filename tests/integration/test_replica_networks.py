"""Networks of replicas on a real engine: who reaches a replica, and whom it reaches."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from services.node_agent.adapters import own_container
from services.node_agent.core.container import Place
from shared.fleet import Order
from shared.ids import new_id
from shared.spec import JobSpec, Service
from tests.integration.agent_stack import IMAGE, busybox, clean_up, docker
from tests.integration.test_gang_networks import ask, engine, listening, start

pytestmark = pytest.mark.docker
SERVES = 'while true; do echo "I am a replica" | nc -l -p "$PORT"; done'


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    busybox()
    place = Place(new_id("t"), "n1")
    yield place
    clean_up(place.stack)
    for name in docker("network", "ls", "-q", "--filter", f"label=wherry.stack={place.stack}").split():
        docker("network", "rm", name)


def replica(command: str) -> Order:
    return Order(
        job_id=new_id("j"), owner_id="u1", attempt=1, seq=1, parent=new_id("j"),
        spec=JobSpec.model_validate({"image": IMAGE, "command": command}), service=Service(port=8080),
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["bridge", "host"])
async def test_an_agent_in_a_container_comes_into_the_network_unless_it_has_the_machines(
    place: Place, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent's container here is one that waits; what it reaches is what an agent in it would."""
    agent = docker(
        "run", "--detach", "--network", mode, "--label", f"wherry.stack={place.stack}", IMAGE, "sleep", "300"
    )
    monkeypatch.setattr(own_container, "container_id", lambda: agent)
    with listening() as port:
        # One that the machine has elsewhere, and the first of the replica's own network, which would be the machine's.
        outward = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
        first = "$(ip -4 addr show eth0 | sed -n 's/.*inet \\([0-9.]*\\)\\.[0-9]*\\/.*/\\1/p').1"
        tries = 2 if mode == "bridge" else 20  # whoever is to be reached may be slow to answer
        looks = "; ".join(f"( {ask(host, port, tries)} )" for host in (outward, first))
        async with engine(place) as runtime:
            key, handle = await start(runtime, replica(f"{{ {looks}; }} > /outputs/seen 2>&1; {SERVES}"))
            host, asked_port = await runtime.address(key, handle, 8080)
            said = await answer(agent, host, asked_port)
            seen = docker("exec", handle, "cat", "/outputs/seen").splitlines()
            await runtime.clear(key)
    assert said == "I am a replica"
    if mode == "bridge":
        assert seen == ["nobody", "nobody"]
    else:  # the machine itself asks the replica, and has an address for that
        assert "the host" in seen
    assert not docker("network", "ls", "-q", "--filter", f"label=wherry.job={key.job_id}")


async def answer(container: str, host: str, port: int) -> str:
    """Return what is said to a container that connects there, once somebody listens."""
    async with asyncio.timeout(180):
        while not (said := docker("exec", container, "sh", "-c", f"nc -w 2 {host} {port} </dev/null || true")):
            await asyncio.sleep(0.2)
    return said


async def test_a_container_that_the_engine_does_not_know_joins_nothing(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_container, "container_id", lambda: "f" * 64)
    async with engine(place) as runtime:
        key, handle = await start(runtime, replica(SERVES))
        host, port = await runtime.address(key, handle, 8080)
        async with asyncio.timeout(60):
            while True:
                try:
                    reader, writer = await asyncio.open_connection(host, port)
                    break
                except OSError:
                    await asyncio.sleep(0.2)
        assert await reader.readline() == b"I am a replica\n"
        writer.close()
        await runtime.clear(key)
    assert not docker("network", "ls", "-q", "--filter", f"label=wherry.job={key.job_id}")
