"""Attempts as hardened containers of a Docker engine, filled and emptied through its API."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypeVar

from services.node_agent.adapters import docker_log, docker_outputs, own_container, use, worker_program
from services.node_agent.adapters.docker_doors import DockerDoors
from services.node_agent.adapters.docker_endpoint import Endpoint
from services.node_agent.adapters.docker_engine import Engine, translated
from services.node_agent.adapters.docker_files import fill, staged
from services.node_agent.adapters.docker_images import DockerImages
from services.node_agent.adapters.docker_inputs import DockerInputs
from services.node_agent.adapters.gang_bridges import GangBridges
from services.node_agent.adapters.reader_thread import ReaderThread
from services.node_agent.core import container, door, wiring
from services.node_agent.core.container import Key, Place
from services.node_agent.core.disk import used_by_attempts
from services.node_agent.core.ending import Outcome
from services.node_agent.core.items import ITEMS
from services.node_agent.core.use import Use, use_in_stats
from services.node_agent.ports import Access, Fetch, Found, Image, Output, Provide, RuntimeFacts, Sink, no_inputs
from shared.clock import utc_now
from shared.errors import NotFound, WherryError
from shared.fleet import Order
from shared.job import Failure
from shared.states import EndReason

T = TypeVar("T")
_KILLED = 137
_TELL_TIMEOUT_S = 5.0
_OOM_NEWS_S = (0.05, 0.15, 0.4)
_UNSEEN_END = "The program is gone, and the engine did not see its end."


class DockerRuntime:
    """Runs attempts as containers of one engine.

    Args:
        place: names and labels.
        endpoints: where the engine may be, in order.
        pids_limit: processes and threads of a job.
        timeout_s: for the answer to one call.
        threads: calls under way at once.
        starts: containers created or started at once; more would only wait inside the engine.
        relay_image: of the relays of network ``api``.
        host_network: members of connected gangs may have the machine's own network.
    """

    name = "docker"

    def __init__(
        self,
        place: Place,
        endpoints: list[Endpoint],
        *,
        pids_limit: int = 256,
        timeout_s: float = 60,
        threads: int = 16,
        starts: int = 4,
        relay_image: str = "wherry/python-base",
        host_network: bool = False,
    ) -> None:
        self._place = place
        self._pids_limit = pids_limit
        self._host_network = host_network
        self._engine = Engine(endpoints, timeout_s=timeout_s, threads=threads, starts=starts)
        self._images = DockerImages(self._engine)
        self._inputs = DockerInputs(self._engine, place)
        self._bridges = GangBridges(self._engine, place)
        self._background: set[asyncio.Task[None]] = set()
        self.doors = DockerDoors(self._engine, place, relay_image)

    # --- the engine, its images, and inputs, which several attempts share ---

    async def describe(self) -> RuntimeFacts:
        """Return the engine's facts, asking anew whether it answers.

        Raises:
            Unavailable: no engine answers; the message says where it was looked for.
        """
        return await self._engine.describe()

    async def find_image(self, order: Order) -> Image | None:
        """Return the image if the engine has it: by the digest that an earlier attempt ran, else by its name."""
        return await self._images.find(order)

    async def images(self) -> tuple[str, ...]:
        """Return names and digests of the images that the engine has."""
        return await self._images.names()

    async def pull_image(self, order: Order, tell: Callable[[float, str], None]) -> Image:
        """Pull the image.

        Raises:
            WherryError: ``image_not_found``, ``image_pull_failed``, or ``unavailable``.
        """
        return await self._images.pull(order, tell)

    async def fill_input(self, volume: str, image: str, pieces: Iterator[bytes]) -> None:
        """Make a volume and fill it through a container that is never started."""
        await self._inputs.fill(volume, image, pieces)

    async def has_input(self, volume: str) -> bool:
        """Return whether the volume is there, and is the one that was filled."""
        return await self._inputs.has(volume)

    async def inputs(self) -> frozenset[str]:
        """Return every volume of an input of this agent's."""
        return await self._inputs.all()

    async def drop_input(self, volume: str) -> bool:
        """Remove the volume, and what fills it; the engine itself keeps what a container has."""
        return await self._inputs.drop(volume)

    # --- one attempt ---

    async def stage(
        self, order: Order, image: Image, source: Fetch, inputs: Provide = no_inputs, access: Access | None = None
    ) -> str:
        """Create the container and fill its volumes, in four calls of which three overlap with the download."""
        if not container.has_command(order, image.config):
            raise WherryError(
                EndReason.IMAGE_NO_COMMAND, f"{order.spec.image} has no command of its own, and the job gives none."
            )
        if order.wiring is not None and order.wiring.network == "host" and not self._host_network:
            raise WherryError(EndReason.RUNTIME_ERROR, "This node lets no container have the network of the machine.")
        key = Key(order.job_id, order.attempt)
        name = self._place.name(key)
        staging = container.staging_container(self._place, order, image.id)
        job = partial(container.job_container, self._place, order, image.id, pids_limit=self._pids_limit)

        async def create() -> str:
            body = wiring.connected(job(inputs=await given), order)
            await self._bridges.join(order)
            if order.map is not None:
                body = worker_program.as_worker(body, order, container.RUN, image.config)
            if access is not None:
                body = door.joined(body, await self.doors.make_relay(order))
            return await self._engine.create(body, name)

        async with _all_or_none() as group:
            path = group.create_task(_awaited(source()))
            given = group.create_task(_awaited(inputs()))
            filled = group.create_task(self._engine.create(staging, f"{name}-staging"))
            if order.service is not None:
                group.create_task(self._make_network(order))
            created = group.create_task(create())
        files = staged(order, path.result(), given.result(), access)
        await self._engine.long_call(fill, self._engine.api(), filled.result(), files)
        return created.result()

    # --- items of a worker ---

    def seen(self, key: Key) -> tuple[str, str]:
        """Return the folders of every container."""
        del key
        return container.WORKSPACE, container.INPUTS

    async def put(self, key: Key, handle: str, pieces: Iterator[bytes]) -> None:
        """Unpack a tar in the workspace: a volume, which takes files also where the container's root does not."""
        del key
        await self._engine.long_call(fill, self._engine.api(), handle, pieces, container.WORKSPACE)

    async def tell(self, key: Key, handle: str, lines: bytes) -> None:
        """Attach to the standard input, write, and wait until the engine has read it: it stays open without us."""
        del key
        await self._engine.call(_tell, self._engine.api(), handle, lines)

    # --- the attempt goes on ---

    async def start(self, key: Key, handle: str) -> None:
        """Start the container; its staging container goes in the background."""
        try:
            await self._engine.start(handle, partial(self._bridges.mend, handle))
        except WherryError as error:
            raise _start_error(error) from error
        staging = f"{self._place.name(key)}-staging"
        task = asyncio.get_running_loop().create_task(self._engine.remove_quietly(staging))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def follow(self, key: Key, handle: str, position: dict[str, Any] | None, sink: Sink) -> ReaderThread:
        """Read the container's log from *position* on, until it ends."""
        del key
        return docker_log.follow(self._engine, handle, position, sink)

    async def address(self, key: Key, handle: str, port: int) -> tuple[str, int]:
        """Return where the container is in its network, which an agent that is itself a container joins."""
        network = container.network_name(self._place, key)
        found = await self._engine.call(self._engine.api().inspect_container, handle)
        host = ((found["NetworkSettings"]["Networks"] or {}).get(network) or {}).get("IPAddress")
        if not host:
            raise NotFound("the container has no address")
        if (me := await self._own_container()) is not None:
            await self._join(me, network)
        return host, port

    async def outcome(self, key: Key, handle: str) -> Outcome | None:
        """Return how the container ended; None while it runs, or before it was started."""
        del key
        state = await self._state(handle)
        if state["Status"] in ("created", "running", "paused", "restarting", "removing"):
            return None
        if state.get("FinishedAt", "").startswith("0001-"):  # it went down with the machine, and the engine with it
            return Outcome(None, failure=Failure(reason=EndReason.AGENT_LOST_CONTAINER, message=_UNSEEN_END))
        code = state["ExitCode"]
        for pause_s in _OOM_NEWS_S:  # on its own way through a busy engine, and may come after the exit code
            if code != _KILLED or state["OOMKilled"]:
                break
            await asyncio.sleep(pause_s)
            state = await self._state(handle)
        failure = None
        if state.get("Error"):
            failure = Failure(reason=EndReason.RUNTIME_ERROR, message=state["Error"])
        return Outcome(code, is_oom=bool(state["OOMKilled"]) and code != 0, failure=failure)

    async def _state(self, handle: str) -> dict[str, Any]:
        return (await self._engine.call(self._engine.api().inspect_container, handle))["State"]

    async def kill(self, key: Key, handle: str, signal: Literal["SIGTERM", "SIGKILL"]) -> None:
        """Send a signal to the container's first process."""
        del key
        try:
            await self._engine.call(self._engine.api().kill, handle, signal)
        except NotFound:
            return
        except WherryError as error:
            if "is not running" not in error.message:
                raise

    def outputs(
        self, key: Key, handle: str, below: str = "", *, of: Literal["outputs", "items"] = "outputs"
    ) -> AsyncIterator[Output]:
        """Give what is in /outputs, or what items have left, read from the container's volume as one tar."""
        del key
        root = container.OUTPUTS if of == "outputs" else f"{container.WORKSPACE}/{ITEMS}/out"
        return docker_outputs.outputs(self._engine, handle, root, below)

    async def disk_used(self, keys: Collection[Key]) -> Mapping[Key, int]:
        """Return what the programs have written, by the engine's own count."""
        counted = used_by_attempts(await self._engine.long_call(self._engine.api().disk_use))
        return {key: counted[key] for key in keys if key in counted}

    async def use(self, key: Key, handle: str) -> Use | None:
        """Return what the container uses: by its control group where that is in sight, else by one look of the engine.

        Raises:
            WherryError: the engine does not answer.
        """
        del key
        seen = await asyncio.to_thread(use.of_container, handle)
        return seen or use_in_stats(await self._engine.call(self._engine.api().use_of, handle))

    async def clear(self, key: Key) -> None:
        """Remove the attempt's containers, then its volumes, also those that its image declared, and its networks."""
        name = self._place.name(key)
        gang = await self._bridges.of(key, name)
        relay = door.relay_name(self._place, key)
        await asyncio.gather(*(self._engine.remove(one) for one in (name, f"{name}-staging", relay)))
        api = self._engine.api()
        for volume in container.volumes(self._place, key).values():
            with suppress(NotFound):
                await self._engine.call(partial(api.remove_volume, volume, force=True))
        await self._remove_network(container.network_name(self._place, key))
        await self._bridges.leave(key, gang)

    async def found(self) -> list[Found]:
        """Return every container, volume and network with this agent's labels."""
        labels = [f"{name}={value}" for name, value in self._place.own_labels().items()]
        api = self._engine.api()
        containers, volumes, networks = await asyncio.gather(
            self._engine.call(partial(api.containers, all=True, filters={"label": labels})),
            self._engine.call(partial(api.volumes, filters={"label": labels})),
            self._engine.call(partial(api.networks, filters={"label": labels})),
        )
        found: list[Found] = []
        for one in containers:
            key = container.key_of(one["Labels"])
            if key is not None:
                handle = one["Id"] if one["Labels"].get("wherry.role") == "job" else ""
                condition = "created" if one["State"] == "created" else "started"
                found.append(Found(key, datetime.fromtimestamp(one["Created"], UTC), handle, condition))
        for one in volumes["Volumes"] or ():
            key = container.key_of(one["Labels"] or {})
            if key is not None:
                found.append(Found(key, datetime.fromisoformat(one["CreatedAt"])))
        keys = (container.key_of(one["Labels"] or {}) for one in await self._bridges.unused(networks))
        found += [Found(key, utc_now()) for key in keys if key is not None]
        return found

    async def close(self) -> None:
        """Let go of the connection; containers run on."""
        if self._background:
            await asyncio.wait(self._background, timeout=self._engine.timeout_s)
        self._engine.close()

    # --- helpers ---

    async def _make_network(self, order: Order) -> None:
        body = container.replica_network(self._place, order, is_joined=await self._own_container() is not None)
        try:
            await self._engine.call(partial(self._engine.api().post_json, "networks/create", body))
        except WherryError as error:
            if "already exists" not in error.message:  # made by a try whose answer was lost
                raise

    async def _own_container(self) -> str | None:
        """Return the agent's own container, if it is one of this engine's and can join networks."""
        if (me := own_container.container_id()) is None:
            return None
        with suppress(NotFound):  # on another engine it is none of ours
            found = await self._engine.call(self._engine.api().inspect_container, me)
            mode = found["HostConfig"]["NetworkMode"]
            return None if mode == "host" or mode.startswith("container:") else me
        return None

    async def _join(self, me: str, network: str) -> None:
        """Connect the agent's own container to a replica's network."""
        try:
            await self._engine.call(partial(self._engine.api().connect_container_to_network, me, network))
        except WherryError as error:
            if "already exists in network" not in error.message:
                raise

    async def _remove_network(self, name: str) -> None:
        api = self._engine.api()
        with suppress(NotFound):
            for one in (await self._engine.call(partial(api.inspect_network, name))).get("Containers") or ():
                with suppress(NotFound):  # the agent itself
                    await self._engine.call(partial(api.disconnect_container_from_network, one, name, force=True))
            await self._engine.call(partial(api.remove_network, name))


def _start_error(error: WherryError) -> WherryError:
    said = error.message
    if any(words in said for words in ("executable file not found", "no such file or directory", "permission denied")):
        return WherryError(EndReason.COMMAND_NOT_FOUND, f"The command could not be executed: {said}")
    return error


def _tell(api: Any, handle: str, lines: bytes) -> None:
    with translated("writing to the program"), _stdin_of(api, handle) as stream:
        stream.settimeout(_TELL_TIMEOUT_S)
        stream.sendall(lines)
        stream.shutdown(socket.SHUT_WR)
        while stream.recv(4096):  # it ends once the engine has read all
            pass


@contextmanager
def _stdin_of(api: Any, handle: str) -> Generator[Any]:
    """Give a socket to the standard input of a container. All that holds it open is closed: nobody would collect it."""
    stream = api.attach_socket(handle, {"stdin": 1, "stream": 1})
    plain = getattr(stream, "_sock", stream)
    try:
        yield plain
    finally:
        for one in (getattr(stream, "_response", None), stream, plain):
            if one is not None:
                with suppress(OSError, ValueError):
                    one.close()


@asynccontextmanager
async def _all_or_none() -> AsyncGenerator[asyncio.TaskGroup]:
    """A task group that raises its first error as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _awaited(value: Awaitable[T]) -> T:
    return await value
