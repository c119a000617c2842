"""Connected gangs on real runtimes: members reach each other and nobody else, and leave no network behind."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.local.ports import free_port
from services.node_agent.adapters.docker_endpoint import endpoints
from services.node_agent.adapters.docker_runtime import DockerRuntime
from services.node_agent.adapters.processes import ProcessRuntime
from services.node_agent.core import wiring
from services.node_agent.core.container import Key, Place
from services.node_agent.ports import Chunk, Runtime
from shared.errors import WherryError
from shared.fleet import Order, Peer, Wiring
from shared.ids import new_id
from shared.spec import JobSpec
from tests.integration.agent_stack import IMAGE, busybox, clean_up, docker

#: Serves one line on its port until it is killed; whoever comes too early asks again.
SERVE = 'while true; do echo "I am $WHERRY_ROLE $RANK" | nc -l -p "$WHERRY_PORT"; done'
ASK = """
n=0
until nc -w 2 {host} {port} < /dev/null > /tmp/said 2> /dev/null && [ -s /tmp/said ]; do
  n=$((n+1)); [ $n -lt {tries} ] || {{ echo nobody; exit 0; }}; sleep 0.2
done
cat /tmp/said
"""


def ask(host: str, port: int | str, tries: int = 600) -> str:
    return ASK.format(host=host, port=port, tries=tries)


def gang(*commands: str, network: Any = "bridge", gang_id: str | None = None, **spec: Any) -> list[Order]:
    """Return the orders of a gang's members, each of role ``worker``, in one round."""
    name = gang_id or new_id("j")
    peers = tuple(
        Peer(role="worker", index=rank, rank=rank, host=f"worker-{rank}", port=2222) for rank in range(len(commands))
    )
    if network == "host":
        peers = tuple(peer.model_copy(update={"host": "127.0.0.1", "port": free_port()}) for peer in peers)
    return [
        Order(
            job_id=new_id("j"), owner_id="u1", attempt=1, seq=1,
            spec=JobSpec.model_validate({"image": IMAGE, "command": command, "env": {"WHERRY_ROLE": "worker"}} | spec),
            wiring=Wiring(gang_id=name, round=1, network=network, peers=peers, rank=rank),
        )
        for rank, command in enumerate(commands)
    ]  # fmt: skip


async def nothing() -> Path | None:
    return None


async def start(runtime: Runtime, order: Order) -> tuple[Key, str]:
    image = await runtime.find_image(order)
    assert image
    key = Key(order.job_id, order.attempt)
    handle = await runtime.stage(order, image, nothing)
    await runtime.start(key, handle)
    return key, handle


async def said(runtime: Runtime, key: Key, handle: str) -> str:
    """Return all that a program prints until it ends."""
    chunks: list[Chunk] = []
    async with asyncio.timeout(180):
        await runtime.follow(key, handle, None, chunks.append).wait()
        while await runtime.outcome(key, handle) is None:
            await asyncio.sleep(0.01)
    return b"".join(chunk.data for chunk in chunks).decode()


def networks(name: str = "wherry-gang-") -> list[str]:
    found = docker("network", "ls", "--format", "{{.Name}}", "--filter", f"name={name}").split()
    return [one for one in found if one.startswith(name)]


@asynccontextmanager
async def engine(place: Place, **more: Any) -> AsyncIterator[DockerRuntime]:
    runtime = DockerRuntime(place, endpoints(os.environ, Path.home(), os.getuid()), **more)
    await runtime.describe()
    try:
        yield runtime
    finally:
        await runtime.close()


@pytest.fixture
async def runtime() -> AsyncIterator[DockerRuntime]:
    busybox()
    place = Place(new_id("t"), "n1")
    try:
        async with engine(place) as runtime:
            yield runtime
    finally:
        clean_up(place.stack)
        for name in docker("network", "ls", "-q", "--filter", f"label=wherry.stack={place.stack}").split():
            docker("network", "rm", name)


@contextmanager
def listening() -> Iterator[int]:
    """A service of this machine, on all of its addresses."""
    with socket.create_server(("0.0.0.0", 0)) as server:
        threading.Thread(target=_greet, args=(server,), daemon=True).start()
        yield server.getsockname()[1]


def _greet(server: socket.socket) -> None:
    while True:
        try:
            there, _ = server.accept()
        except OSError:
            return
        with there:
            there.sendall(b"the host\n")


@pytest.mark.docker
async def test_members_on_one_engine_reach_each_other_by_name_and_nobody_else(runtime: DockerRuntime) -> None:
    with listening() as port:
        outward = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
        gateway = "$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')"
        looks = [ask("worker-0", "2222"), ask("stranger-0", "2222", 2), ask(outward, port, 2)]
        looks.append(f'echo "gateway {gateway}"; test -z "{gateway}" || {{ {ask(gateway, port, 2)} }}')
        server, client = gang(SERVE, "\n".join(f"( {look} )" for look in looks))
        (stranger,) = gang(SERVE.replace("$RANK", "a stranger"))
        stranger = stranger.model_copy(
            update={"wiring": stranger.wiring.model_copy(
                update={"peers": (Peer(role="stranger", index=0, rank=0, host="stranger-0", port=2222),)}
            ) if stranger.wiring else None}
        )  # fmt: skip
        for one in (server, stranger):
            await start(runtime, one)
        lines = (await said(runtime, *await start(runtime, client))).splitlines()
    assert lines[:3] == ["I am worker 0", "nobody", "nobody"]
    assert "the host" not in "\n".join(lines)
    assert lines[-1] == "nobody" or lines[-1].strip() == "gateway"


@pytest.mark.docker
async def test_the_network_goes_with_the_last_member_and_the_next_round_has_its_own(runtime: DockerRuntime) -> None:
    first, second = gang("true", SERVE)
    assert first.wiring
    name = wiring.network_name(first.wiring)
    ended, runs = await start(runtime, first), await start(runtime, second)
    await said(runtime, *ended)
    await runtime.clear(ended[0])
    assert networks(name) == [name]
    await runtime.clear(runs[0])
    assert networks(name) == []
    again = first.model_copy(update={"attempt": 2, "wiring": first.wiring.model_copy(update={"round": 2})})
    key, _ = await start(runtime, again)
    assert networks(f"wherry-gang-{first.wiring.gang_id}") == [f"wherry-gang-{first.wiring.gang_id}-2"]
    await runtime.clear(key)
    assert networks(f"wherry-gang-{first.wiring.gang_id}") == []


@pytest.mark.docker
async def test_two_agents_of_one_engine_that_come_at_the_same_moment_share_one_network(runtime: DockerRuntime) -> None:
    other = Place(new_id("t"), "n2")
    try:
        async with engine(other) as second:
            for _ in range(2):
                orders = gang(SERVE, ask("worker-0", 2222), SERVE, ask("worker-2", 2222))
                both = await asyncio.gather(
                    *(start(agent, one) for agent, one in zip((runtime, second, second, runtime), orders, strict=True))
                )
                texts = await asyncio.gather(said(second, *both[1]), said(runtime, *both[3]))
                assert texts == ["I am worker 0\n", "I am worker 2\n"]
                for agent, (key, _) in zip((runtime, second, second, runtime), both, strict=True):
                    await agent.clear(key)
                assert orders[0].wiring
                assert networks(wiring.network_name(orders[0].wiring)) == []
    finally:
        clean_up(other.stack)


@pytest.mark.docker
async def test_a_member_whose_network_was_removed_before_it_started_gets_it_back(runtime: DockerRuntime) -> None:
    (late,) = gang("echo here")
    assert late.wiring
    image = await runtime.find_image(late)
    assert image
    key = Key(late.job_id, 1)
    handle = await runtime.stage(late, image, nothing)
    docker("network", "rm", wiring.network_name(late.wiring))
    await runtime.start(key, handle)
    assert await said(runtime, key, handle) == "here\n"
    await runtime.clear(key)
    assert networks(wiring.network_name(late.wiring)) == []


@pytest.mark.docker
async def test_what_another_agent_before_left_is_found_and_removed(runtime: DockerRuntime) -> None:
    (one,) = gang(SERVE)
    assert one.wiring
    key, handle = await start(runtime, one)
    name = wiring.network_name(one.wiring)
    place = runtime._place
    async with engine(place) as again:
        assert key in {found.key for found in await again.found()}
        docker("rm", "-fv", handle)  # it died between removing the container and the network
        assert key in {found.key for found in await again.found()}
        await again.clear(key)
        assert networks(name) == []
        assert key not in {found.key for found in await again.found()}


@pytest.mark.docker
async def test_the_hosts_network_is_given_only_where_the_node_allows_it(runtime: DockerRuntime) -> None:
    server, client = gang(SERVE, 'nc -w 2 $(echo "$MASTER_ADDR $MASTER_PORT")', network="host")
    with pytest.raises(WherryError, match="no container have the network"):
        await start(runtime, server)
    assert client.wiring
    peer = client.wiring.peers[0]
    client = client.model_copy(update={"spec": client.spec.model_copy(update={"command": ask(peer.host, peer.port)})})
    async with engine(runtime._place, host_network=True) as allowed:
        await start(allowed, server)
        assert await said(allowed, *await start(allowed, client)) == "I am worker 0\n"
        for one in (server, client):
            await allowed.clear(Key(one.job_id, 1))


async def test_plain_processes_reach_each_other_by_their_machines_address(tmp_path: Path) -> None:
    runtime = ProcessRuntime(tmp_path / "processes", {"PATH": os.environ["PATH"]})
    listen = (
        "python3 -c \"import os,socket; s=socket.create_server((os.environ['WHERRY_ADDRESS'], "
        "int(os.environ['WHERRY_PORT']))); c,_=s.accept(); c.sendall(('rank '+os.environ['RANK']).encode())\""
    )
    call = (
        "python3 -c \"import json,os,socket,time\nm=json.loads(os.environ['WHERRY_PEERS'])[0]\nfor _ in range(300):\n"
        " try: s=socket.create_connection((m['host'], m['port'])); break\n except OSError: time.sleep(0.1)\n"
        'print(s.recv(100).decode())"'
    )
    plain = {"image": None, "runtime": "process"}
    server, client = gang(listen, call, network="host", **plain)
    first = await start(runtime, server)
    try:
        assert await said(runtime, *await start(runtime, client)) == "rank 0\n"
    finally:
        await runtime.kill(*first, "SIGKILL")
        for one in (server, client):
            await runtime.clear(Key(one.job_id, 1))
