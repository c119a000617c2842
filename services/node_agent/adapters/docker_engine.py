"""The Docker engine: hardened containers, filled and emptied through its API. The only module that knows `docker`."""

import asyncio
import base64
import json
import socket
import tarfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

import docker
import docker.errors
import docker.tls
import docker.utils

from services.node_agent.adapters import own_container, source_zip, use, worker_program
from services.node_agent.adapters.docker_doors import DockerDoors, Engine
from services.node_agent.adapters.docker_endpoint import Endpoint
from services.node_agent.adapters.gang_bridges import GangBridges
from services.node_agent.adapters.pieces import PieceReader
from services.node_agent.adapters.reader_thread import ReaderThread
from services.node_agent.core import archive, container, door, wiring
from services.node_agent.core.container import Key, Place
from services.node_agent.core.disk import used_by_attempts
from services.node_agent.core.ending import Outcome
from services.node_agent.core.frames import FrameParser, LogPosition, moment, unread
from services.node_agent.core.items import ITEMS
from services.node_agent.core.shelf import CONTENT, Given
from services.node_agent.core.use import Use, use_in_stats
from services.node_agent.ports import Access, Chunk, Fetch, Found, Image, Output, Provide, RuntimeFacts, Sink, no_inputs
from shared.clock import utc_now
from shared.errors import NotFound, Unavailable, WherryError
from shared.fleet import Order
from shared.job import Failure
from shared.requests.blobs import CHUNK_BYTES
from shared.states import EndReason

T = TypeVar("T")
_TAR_PIECE_BYTES = 256 * 1024
_QUICK_TIMEOUT_S = 10
#: How many times the time for an answer a pull may be silent: large layers are unpacked without a word.
_SILENT_TIMES = 5
_KILLED = 137
_TELL_TIMEOUT_S = 5.0
_OOM_NEWS_S = (0.05, 0.15, 0.4)
_LONG_THREADS = 64
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
        self._endpoints = endpoints
        self._pids_limit = pids_limit
        self._timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(threads, "docker")
        self._long_pool = ThreadPoolExecutor(_LONG_THREADS, "docker-long")
        self._look_pool = ThreadPoolExecutor(1, "docker-look")  # its own: whether the engine answers never has to queue
        self._starts = asyncio.Semaphore(starts)
        self._client: _Client | None = None
        self._connecting = threading.Lock()
        self._facts: RuntimeFacts | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._host_network = host_network
        self._bridges = GangBridges(place, self._api, self._call)
        long_call = partial(self._call, pool=self._long_pool)
        engine = Engine(self._api, self._call, long_call, self._create)
        self.doors = DockerDoors(engine, place, relay_image)

    # --- the engine ---

    async def describe(self) -> RuntimeFacts:
        """Return the engine's facts, asking anew whether it answers.

        Raises:
            Unavailable: no engine answers; the message says where it was looked for.
        """
        return await self._call(self._describe, pool=self._look_pool)

    async def find_image(self, order: Order) -> Image | None:
        """Return the image if the engine has it: by the digest that an earlier attempt ran, else by its name."""
        for reference in dict.fromkeys(filter(None, (order.image_digest, order.spec.image))):
            with suppress(NotFound):
                return _image(await self._call(self._api().inspect_image, reference), order)
        return None

    async def images(self) -> tuple[str, ...]:
        """Return names and digests of the images that the engine has."""
        return tuple(container.image_names(await self._call(self._api().images)))

    async def pull_image(self, order: Order, tell: Callable[[float, str], None]) -> Image:
        """Pull the image.

        Raises:
            WherryError: ``image_not_found``, ``image_pull_failed``, or ``unavailable``.
        """
        pinned = order.image_digest if order.image_digest and "@" in order.image_digest else None
        reference = pinned or order.spec.image or ""
        cancelled = threading.Event()
        # Not waited for when nobody wants it any more: the engine may be silent for long, and leaves nothing half done.
        pull = partial(self._pull, reference, tell, cancelled)
        await self._call(pull, pool=self._long_pool, give_up=cancelled.set)
        image = await self.find_image(order)
        if image is None:
            raise WherryError(EndReason.IMAGE_NOT_FOUND, f"{reference} was pulled and is not there.")
        return image

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
            return await self._create(body, name)

        async with _all_or_none() as group:
            path = group.create_task(_awaited(source()))
            given = group.create_task(_awaited(inputs()))
            filled = group.create_task(self._create(staging, f"{name}-staging"))
            if order.service is not None:
                group.create_task(self._make_network(order))
            created = group.create_task(create())
        files = _staged(order, path.result(), given.result(), access)
        await self._call(partial(self._fill, filled.result(), files), pool=self._long_pool)
        return created.result()

    # --- items of a worker ---

    def seen(self, key: Key) -> tuple[str, str]:
        """Return the folders of every container."""
        del key
        return container.WORKSPACE, container.INPUTS

    async def put(self, key: Key, handle: str, pieces: Iterator[bytes]) -> None:
        """Unpack a tar in the workspace: a volume, which takes files also where the container's root does not."""
        del key
        await self._call(partial(self._fill, handle, pieces, container.WORKSPACE), pool=self._long_pool)

    async def tell(self, key: Key, handle: str, lines: bytes) -> None:
        """Attach to the standard input, write, and wait until the engine has read it: it stays open without us."""
        del key
        await self._call(partial(self._tell, handle, lines))

    # --- inputs, which several attempts share ---

    async def fill_input(self, volume: str, image: str, pieces: Iterator[bytes]) -> None:
        """Make a volume and fill it through a container that is never started."""
        place, api = self._place, self._api()
        name, labels = place.input_name(volume), place.input_labels(volume)
        await self._call(partial(api.create_volume, name, labels=labels))
        try:
            staging = await self._create(container.filling_container(place, volume, image), f"{name}-staging")
            await self._call(partial(self._fill, staging, pieces), pool=self._long_pool)
        finally:
            await self._remove_quietly(f"{name}-staging")

    async def has_input(self, volume: str) -> bool:
        """Return whether the volume is there, and is the one that was filled: a missing one would be mounted empty."""
        try:
            found = await self._call(self._api().inspect_volume, self._place.input_name(volume))
        except NotFound:
            return False
        return (found["Labels"] or {}).get("wherry.input") == volume

    async def inputs(self) -> frozenset[str]:
        """Return every volume of an input of this agent's."""
        labels = [f"{name}={value}" for name, value in self._place.own_labels().items()]
        found = await self._call(partial(self._api().volumes, filters={"label": [*labels, "wherry.input"]}))
        return frozenset(one["Labels"]["wherry.input"] for one in found["Volumes"] or ())

    async def drop_input(self, volume: str) -> bool:
        """Remove the volume, and what fills it; the engine itself keeps what a container has."""
        name = self._place.input_name(volume)
        await self._remove(f"{name}-staging")
        try:
            await self._call(partial(self._api().remove_volume, name))
        except NotFound:
            return True
        except WherryError as error:
            if "in use" not in error.message:
                raise
            return False
        return True

    # --- the attempt goes on ---

    async def start(self, key: Key, handle: str) -> None:
        """Start the container; its staging container goes in the background."""
        async with self._starts:
            try:
                await self._call(self._api().start, handle)
            except WherryError as error:
                if not await self._bridges.mend(handle, error):
                    raise _start_error(error) from error
                await self._call(self._api().start, handle)
        task = asyncio.get_running_loop().create_task(self._remove_quietly(f"{self._place.name(key)}-staging"))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def follow(self, key: Key, handle: str, position: dict[str, Any] | None, sink: Sink) -> ReaderThread:
        """Read the container's log from *position* on, until it ends."""
        del key
        place = LogPosition(**(position or {}))
        return ReaderThread(f"log-{handle[:12]}", partial(self._read_log, handle, place, sink))

    async def address(self, key: Key, handle: str, port: int) -> tuple[str, int]:
        """Return where the container is in its network, which an agent that is itself a container joins."""
        network = container.network_name(self._place, key)
        found = await self._call(self._api().inspect_container, handle)
        host = ((found["NetworkSettings"]["Networks"] or {}).get(network) or {}).get("IPAddress")
        if not host:
            raise NotFound("the container has no address")
        if (me := own_container.container_id()) is not None:
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
        return (await self._call(self._api().inspect_container, handle))["State"]

    async def kill(self, key: Key, handle: str, signal: Literal["SIGTERM", "SIGKILL"]) -> None:
        """Send a signal to the container's first process."""
        del key
        try:
            await self._call(self._api().kill, handle, signal)
        except NotFound:
            return
        except WherryError as error:
            if "is not running" not in error.message:
                raise

    async def outputs(
        self, key: Key, handle: str, below: str = "", *, of: Literal["outputs", "items"] = "outputs"
    ) -> AsyncIterator[Output]:
        """Give what is in /outputs, or what items have left, read from the container's volume as one tar."""
        del key
        root = container.OUTPUTS if of == "outputs" else f"{container.WORKSPACE}/{ITEMS}/out"
        queue: asyncio.Queue[Output | bytes | BaseException | None] = asyncio.Queue(8)
        loop = asyncio.get_running_loop()
        cancelled = threading.Event()

        def put(item: Output | bytes | BaseException | None) -> None:
            if cancelled.is_set():
                raise InterruptedError
            asyncio.run_coroutine_threadsafe(queue.put(item), loop).result()

        reading = loop.run_in_executor(self._long_pool, self._read_outputs, handle, root, below, put)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, bytes):
                    continue  # of a file whose content nobody wanted
                yield item if item.body is not None or item.kind != "file" else _with_chunks(item, queue)
        finally:
            cancelled.set()
            while not reading.done():
                while not queue.empty():
                    queue.get_nowait()
                await asyncio.wait({reading}, timeout=0.05)

    async def disk_used(self, keys: Collection[Key]) -> Mapping[Key, int]:
        """Return what the programs have written, by the engine's own count."""
        counted = used_by_attempts(await self._call(self._disk_use, pool=self._long_pool))
        return {key: counted[key] for key in keys if key in counted}

    async def use(self, key: Key, handle: str) -> Use | None:
        """Return what the container uses: by its control group where that is in sight, else by one look of the engine.

        Raises:
            WherryError: the engine does not answer.
        """
        del key
        seen = await asyncio.to_thread(use.of_container, handle)
        return seen or use_in_stats(await self._call(self._stats, handle))

    async def clear(self, key: Key) -> None:
        """Remove the attempt's containers, then its volumes, also those that its image declared, and its networks."""
        name = self._place.name(key)
        gang = await self._bridges.of(key, name)
        relay = door.relay_name(self._place, key)
        await asyncio.gather(*(self._remove(one) for one in (name, f"{name}-staging", relay)))
        api = self._api()
        for volume in container.volumes(self._place, key).values():
            with suppress(NotFound):
                await self._call(partial(api.remove_volume, volume, force=True))
        await self._remove_network(container.network_name(self._place, key))
        await self._bridges.leave(key, gang)

    async def found(self) -> list[Found]:
        """Return every container, volume and network with this agent's labels."""
        labels = [f"{name}={value}" for name, value in self._place.own_labels().items()]
        api = self._api()
        containers, volumes, networks = await asyncio.gather(
            self._call(partial(api.containers, all=True, filters={"label": labels})),
            self._call(partial(api.volumes, filters={"label": labels})),
            self._call(partial(api.networks, filters={"label": labels})),
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
            await asyncio.wait(self._background, timeout=self._timeout_s)
        self._pool.shutdown(wait=True)
        self._long_pool.shutdown(wait=False, cancel_futures=True)
        self._look_pool.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    # --- in threads ---

    def _describe(self) -> RuntimeFacts:
        with self._connecting:
            if self._client is None:
                self._client, self._facts = self._connect()
                return self._facts
            client, facts = self._client, self._facts
        try:
            client.get(f"{client.base_url}/_ping", timeout=_QUICK_TIMEOUT_S).raise_for_status()
        except (docker.errors.DockerException, OSError):
            with self._connecting:
                self._client = self._facts = None
            raise
        if facts is None:
            raise Unavailable("the Docker engine was lost")
        return facts

    def _connect(self) -> "tuple[_Client, RuntimeFacts]":
        tried: list[str] = []
        for endpoint in self._endpoints:
            try:
                client = _client(endpoint, self._timeout_s)
                return client, _facts(client)
            except (docker.errors.DockerException, OSError, ValueError) as error:
                tried.append(f"{endpoint.url or 'nothing'} ({endpoint.why}): {_short(error)}")
        raise Unavailable("no Docker engine answers; tried " + "; ".join(tried))

    def _stats(self, handle: str) -> dict[str, Any]:
        api = self._api()
        url, once = f"{api.base_url}/v{api.api_version}/containers/{handle}/stats", {"stream": 0, "one-shot": 1}
        with closing(api.get(url, params=once)) as response:
            return response.json() if response.ok else {}

    def _disk_use(self) -> dict[str, Any]:
        api = self._api()
        # Newer engines then leave the images uncounted; older ones do not know the words.
        url, only = f"{api.base_url}/v{api.api_version}/system/df", {"type": ["container", "volume"]}
        with closing(api.get(url, params=only, timeout=_SILENT_TIMES * self._timeout_s)) as response:
            if not response.ok:
                raise Unavailable(f"the engine does not count its disk use: {response.text[:200].strip()}")
            return response.json()

    def _pull(self, reference: str, tell: Callable[[float, str], None], cancelled: threading.Event) -> None:
        repository, tag = docker.utils.parse_repository_tag(reference)
        layers: dict[str, tuple[int, int]] = {}
        try:
            for event in self._api().pull(repository, tag or "latest", stream=True, decode=True):
                if cancelled.is_set():
                    return
                if "error" in event:
                    raise _pull_error(reference, str(event["error"]))
                detail = event.get("progressDetail") or {}
                if event.get("status") == "Downloading" and detail.get("total"):
                    layers[event["id"]] = (detail["current"], detail["total"])
                    done, total = (sum(column) for column in zip(*layers.values(), strict=True))
                    tell(done / total, f"pulling {reference}: {done / 1e6:.1f} of {total / 1e6:.1f} MB")
        except docker.errors.APIError as error:
            raise _pull_error(reference, str(error.explanation or error)) from error

    def _fill(self, handle: str, files: Iterator[bytes], folder: str = "/") -> None:
        with _translated("putting files into the container"):
            self._api().put_archive(handle, folder, _joined(files))

    def _tell(self, handle: str, lines: bytes) -> None:
        api = self._api()
        with _translated("writing to the program"), _stdin_of(api, handle) as stream:
            stream.settimeout(_TELL_TIMEOUT_S)
            stream.sendall(lines)
            stream.shutdown(socket.SHUT_WR)
            while stream.recv(4096):  # it ends once the engine has read all
                pass

    def _read_log(self, handle: str, position: LogPosition, sink: Sink, reader: ReaderThread) -> None:
        """Follow the log to its end, then read what is left of it.

        An engine may end the following of a program that prints much and ends with thousands of lines unsent (seen
        with 20.10). All of them are in its log.
        """
        self._read_log_once(handle, position, sink, reader, follow=True)
        if not reader.is_closed:
            self._read_log_once(handle, LogPosition(**position.saved()), sink, reader, follow=False)

    def _read_log_once(
        self, handle: str, position: LogPosition, sink: Sink, reader: ReaderThread, *, follow: bool
    ) -> None:
        api = self._api()
        query = {"follow": int(follow), "stdout": 1, "stderr": 1, "timestamps": 1, "since": position.since() or 0}
        url = f"{api.base_url}/v{api.api_version}/containers/{handle}/logs"
        frames = FrameParser()
        with _translated("reading a container's log"):
            response = api.get(url, params=query, stream=True, timeout=(self._timeout_s, None))
            try:
                reader.interrupt = partial(_shut_down, api, response)
                if response.status_code == 404:
                    raise NotFound("the container is gone")
                response.raise_for_status()
                for data in response.iter_content(None):
                    if reader.is_closed:
                        return
                    for frame, behind in unread(frames.feed(data), position):
                        sink(Chunk(frame.stream, moment(frame.stamp), frame.data, behind))
            finally:
                reader.interrupt = None
                response.close()

    def _refuse_links(self, handle: str, root: str, below: str) -> None:
        """Return if no folder above *below* is a link: the engine would follow it out of *root*.

        Raises:
            NotFound: one is, or there is none.
        """
        api, folders = self._api(), below.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            path = "/".join((root, *folders[:depth]))
            url = f"{api.base_url}/v{api.api_version}/containers/{handle}/archive"
            with closing(api.head(url, params={"path": path}, timeout=self._timeout_s)) as response:
                found = response.headers.get("X-Docker-Container-Path-Stat", "")
            if not found or json.loads(base64.b64decode(found)).get("linkTarget"):
                raise NotFound(f"nothing is at {below!r}")

    def _read_outputs(
        self, handle: str, root: str, below: str, put: Callable[[Output | bytes | BaseException | None], None]
    ) -> None:
        try:
            with _translated("reading the outputs"):
                self._refuse_links(handle, root, below)
                pieces, _ = self._api().get_archive(handle, f"{root}/{below}".rstrip("/"), CHUNK_BYTES)
                with tarfile.open(fileobj=cast("Any", PieceReader(pieces)), mode="r|", bufsize=_TAR_PIECE_BYTES) as tar:
                    while (member := tar.next()) is not None:
                        _give(tar, member, below, put)
                        cast("Any", tar).members.clear()  # else it remembers every file
            put(None)
        except InterruptedError:
            return
        except BaseException as error:  # noqa: BLE001 - raised again by the one who reads
            with suppress(InterruptedError):
                put(error)

    # --- helpers ---

    def _api(self) -> "_Client":
        if self._client is None:
            raise Unavailable("the Docker engine does not answer")
        return self._client

    async def _create(self, config: dict[str, Any], name: str) -> str:
        async with self._starts:
            create = partial(self._api().create_container_from_config, config, name)
            try:
                return (await self._call(create))["Id"]
            except WherryError as error:
                if "is already in use" not in error.message:
                    raise
                # Left by a try whose answer was lost. It was never started: `start` comes after this returns.
                await self._remove(name)
                return (await self._call(create))["Id"]

    async def _remove(self, name: str) -> None:
        try:
            await self._call(partial(self._api().remove_container, name, v=True, force=True))
        except NotFound:
            return
        except WherryError as error:
            if "already in progress" not in error.message:
                raise
            with suppress(NotFound):  # till then its volumes are in use
                await self._call(partial(self._api().wait, name, timeout=int(self._timeout_s), condition="removed"))

    async def _make_network(self, order: Order) -> None:
        create = partial(self._api().post_json, "networks/create", container.replica_network(self._place, order))
        try:
            await self._call(create)
        except WherryError as error:
            if "already exists" not in error.message:  # made by a try whose answer was lost
                raise

    async def _join(self, me: str, network: str) -> None:
        """Connect the agent's own container to a replica's network; on another engine it is none of ours."""
        try:
            await self._call(partial(self._api().connect_container_to_network, me, network))
        except NotFound:
            return
        except WherryError as error:
            if "already exists in network" not in error.message:
                raise

    async def _remove_network(self, name: str) -> None:
        api = self._api()
        with suppress(NotFound):
            for one in (await self._call(partial(api.inspect_network, name))).get("Containers") or ():
                with suppress(NotFound):  # the agent itself
                    await self._call(partial(api.disconnect_container_from_network, one, name, force=True))
            await self._call(partial(api.remove_network, name))

    async def _remove_quietly(self, name: str) -> None:
        with suppress(WherryError):  # `clear` comes by again
            await self._remove(name)

    async def _call(
        self,
        call: Callable[..., T],
        *args: Any,
        pool: ThreadPoolExecutor | None = None,
        give_up: Callable[[], None] | None = None,
    ) -> T:
        """Run *call* in a thread. A cancelled caller leaves only when the thread is done: no call outlives its task.

        One that can be told to *give_up* is told, and left to itself.
        """

        def run() -> T:
            with _translated("the Docker engine"):
                return call(*args)

        future = asyncio.get_running_loop().run_in_executor(pool or self._pool, run)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if give_up is not None:
                future.add_done_callback(_no_matter)
                give_up()
                raise
            with suppress(Exception):
                await asyncio.wait({future})
            raise


class _Client(docker.APIClient):
    """An engine's client that waits for nothing without end: docker's own does so for a pull, which may be silent."""

    def post_json(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the answer to a call of the API, given as it is."""
        api: Any = self
        answer = api.post(f"{api.base_url}/v{api.api_version}/{path}", json=body)
        return api._result(answer, json=True)  # noqa: SLF001 - our own, as a subclass has it

    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout if "timeout" not in kwargs else _SILENT_TIMES * self.timeout
        return kwargs


def _client(endpoint: Endpoint, timeout_s: float) -> _Client:
    tls: docker.tls.TLSConfig | bool = False
    if (folder := endpoint.certificates) is not None:
        tls = docker.tls.TLSConfig(
            client_cert=(str(folder / "cert.pem"), str(folder / "key.pem")),
            ca_cert=str(folder / "ca.pem") if (folder / "ca.pem").exists() else None,
            verify=endpoint.verify,
        )
    if not endpoint.url:
        raise ValueError("names no engine")
    if endpoint.url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:  # says why not, in few words, and leaves no socket open
            probe.connect(endpoint.url.removeprefix("unix://"))
    # No version: it is negotiated. The first answer must come soon, or nothing else is tried.
    client: Any = _Client(endpoint.url, timeout=_QUICK_TIMEOUT_S, tls=tls, use_ssh_client=True)
    client.timeout = timeout_s
    return client


def _facts(client: docker.APIClient) -> RuntimeFacts:
    version, info = client.version(), client.info()
    return RuntimeFacts(
        text=f"docker {version['Version']} api {client.api_version}",
        cpus=float(info["NCPU"]),
        memory=int(info["MemTotal"]),
        arch={"x86_64": "amd64", "aarch64": "arm64"}.get(info["Architecture"], info["Architecture"]),
        # Machines that are copies of one another have engines of the same id.
        engine_id=" ".join(filter(None, (info.get("ID"), info.get("Name"), info.get("DockerRootDir")))),
    )


def _image(found: dict[str, Any], order: Order) -> Image:
    repository, _ = docker.utils.parse_repository_tag(order.spec.image or "")
    digests: list[str] = found.get("RepoDigests") or []
    own = [digest for digest in digests if digest.partition("@")[0] == repository]
    digest = next(iter(own or digests), found["Id"])
    return Image(found["Id"], digest, found.get("Config") or {})


def _pull_error(reference: str, said: str) -> WherryError:
    """Return why a pull failed. Bytes that are not what their digest says stay wrong; all else may pass."""
    missing = ("not found", "does not exist", "manifest unknown", "access denied", "invalid reference")
    if any(words in said.lower() for words in missing):
        return WherryError(EndReason.IMAGE_NOT_FOUND, f"The image {reference} was not found: {said}")
    is_wrong = any(words in said.lower() for words in ("verification failed", "digest mismatch"))
    message = f"The image {reference} could not be pulled: {said}"
    return WherryError(EndReason.IMAGE_PULL_FAILED, message, retryable=not is_wrong)


def _no_matter(done: "asyncio.Future[Any]") -> None:
    """Look at what became of something that nobody waits for."""
    if not done.cancelled():
        done.exception()


def _start_error(error: WherryError) -> WherryError:
    said = error.message
    if any(words in said for words in ("executable file not found", "no such file or directory", "permission denied")):
        return WherryError(EndReason.COMMAND_NOT_FOUND, f"The command could not be executed: {said}")
    return error


def _staged(
    order: Order, source: Path | None, inputs: Mapping[str, Given], access: Access | None = None
) -> Iterator[bytes]:
    """Give the tar that fills all volumes of an attempt at once."""
    params = json.dumps(order.spec.params).encode()
    yield archive.folder("workspace")
    yield archive.folder("outputs")
    yield archive.folder("run/wherry")
    yield archive.file("run/wherry/params.json", len(params), 0o444)
    yield params + archive.padding(len(params))
    if access is not None:
        token = access.token.encode()
        yield archive.file(door.TOKEN[1:], len(token), 0o400) + token + archive.padding(len(token))
    if order.map is not None:
        yield from worker_program.tar_parts(container.RUN[1:], container.WORKSPACE[1:])
    if source is not None:
        yield from source_zip.tar_of(source_zip.members(source, bytes_max=order.spec.resources.disk), "workspace")
    if inputs:
        yield archive.folder("inputs")
    for name, given in inputs.items():
        if given.is_file:
            yield archive.link(f"inputs/{name}", f"{container.input_target(name, given)}/{CONTENT}")
        else:
            yield archive.folder(f"inputs/{name}")  # to be mounted on: nothing can be made there once it is read-only
    yield archive.END


def _joined(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Give *parts* in larger pieces: each one is a chunk on the wire."""
    held = bytearray()
    for part in parts:
        held += part
        if len(held) >= _TAR_PIECE_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held)


def _give(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    below: str,
    put: Callable[[Output | bytes | BaseException | None], None],
) -> None:
    path = _below_outputs(member.name, below)
    if not path:
        return
    mode, mtime = member.mode & 0o7777, float(member.mtime)
    if member.isdir():
        put(Output(path, "dir", mode, mtime))
    elif member.islnk():
        put(Output(path, "link", mode, mtime, target=_below_outputs(member.linkname, below)))
    elif not member.isreg():
        put(Output(path, "other", mode, mtime))
    elif (content := tar.extractfile(member)) is not None:
        size = member.size
        if size <= CHUNK_BYTES:
            put(Output(path, "file", mode, mtime, size, body=content.read()))
            return
        put(Output(path, "file", mode, mtime, size))
        while piece := content.read(CHUNK_BYTES):
            put(piece)


def _below_outputs(name: str, below: str) -> str:
    """Return the path of a tar's member, whose first part is the last one of what was asked for."""
    return "/".join(filter(None, (below, name.partition("/")[2].strip("/"))))


def _with_chunks(item: Output, queue: "asyncio.Queue[Output | bytes | BaseException | None]") -> Output:
    async def chunks() -> AsyncIterator[bytes]:
        left = item.size
        while left > 0:
            piece = await queue.get()
            if isinstance(piece, BaseException):
                raise piece
            if not isinstance(piece, bytes):
                raise WherryError("runtime_error", "the engine's archive ended in the middle of a file", retryable=True)
            left -= len(piece)
            yield piece

    return Output(item.path, "file", item.mode, item.mtime, item.size, chunks=chunks())


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


def _shut_down(api: Any, response: Any) -> None:
    """Wake the thread that waits for more of *response*: closing alone would not."""
    with suppress(AttributeError, ValueError):
        reader: Any = api._get_raw_response_socket(response)  # noqa: SLF001 - there is no public way
        getattr(reader, "_sock", reader).shutdown(socket.SHUT_RDWR)


@contextmanager
def _translated(what: str) -> Generator[None]:
    """Raise what the engine answers, or that it does not, as our own errors."""
    try:
        yield
    except docker.errors.NotFound as error:
        raise NotFound(f"{what}: {_short(error)}") from error
    except docker.errors.APIError as error:
        raise WherryError("runtime_error", f"{what}: {_short(error)}", retryable=error.is_server_error()) from error
    except (InterruptedError, WherryError):
        raise
    except (docker.errors.DockerException, OSError) as error:  # requests' errors are OSErrors
        raise Unavailable(f"{what}: {_short(error)}") from error


def _short(error: Exception) -> str:
    if isinstance(error, docker.errors.APIError) and error.explanation:
        return str(error.explanation)
    return str(error)[:500]


@contextmanager
def _unwrapped() -> Generator[None]:
    try:
        yield
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


class _all_or_none:  # noqa: N801 - used as a block
    """A task group that raises its first error as it is."""

    def __init__(self) -> None:
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> asyncio.TaskGroup:
        return await self._group.__aenter__()

    async def __aexit__(self, *error: Any) -> None:  # noqa: PYI036 - handed on as it is
        with _unwrapped():
            await self._group.__aexit__(*error)


async def _awaited(value: Awaitable[T]) -> T:
    return await value
