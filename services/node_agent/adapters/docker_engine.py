"""A Docker engine: where it is, whether it answers, and calls of it in threads. The only module that knows `docker`."""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import docker
import docker.errors
import docker.tls
import docker.utils

from services.node_agent.adapters.docker_endpoint import Endpoint
from services.node_agent.ports import RuntimeFacts
from shared.errors import NotFound, Unavailable, WherryError

T = TypeVar("T")
_QUICK_TIMEOUT_S = 10
#: How many times the time for an answer a pull may be silent: large layers are unpacked without a word.
_SILENT_TIMES = 5
_LONG_THREADS = 64


class Client(docker.APIClient):
    """An engine's client that waits for nothing without end: docker's own does so for a pull, which may be silent."""

    def url(self, path: str) -> str:
        """Return the address of *path* in the engine's API."""
        return f"{self.base_url}/v{self.api_version}/{path}"

    def post_json(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the answer to a call of the API, given as it is."""
        api: Any = self
        return api._result(api.post(self.url(path), json=body), json=True)  # noqa: SLF001 - our own, as a subclass has it

    def pulled(self, reference: str) -> Iterator[dict[str, Any]]:
        """Pull an image, and give what the engine says meanwhile; why it gives up is the last, under ``error``."""
        repository, tag = docker.utils.parse_repository_tag(reference)
        try:
            yield from self.pull(repository, tag or "latest", stream=True, decode=True)
        except docker.errors.APIError as error:
            yield {"error": error.explanation or error}

    def use_of(self, handle: str) -> dict[str, Any]:
        """Return what the engine counts of a container, as of now; nothing of one that is gone."""
        api: Any = self
        with closing(api.get(self.url(f"containers/{handle}/stats"), params={"stream": 0, "one-shot": 1})) as response:
            return response.json() if response.ok else {}

    def disk_use(self) -> dict[str, Any]:
        """Return what containers and volumes have on disk.

        Raises:
            Unavailable: the engine does not count it.
        """
        api: Any = self
        # Newer engines then leave the images uncounted; older ones do not know the words.
        only, timeout_s = {"type": ["container", "volume"]}, _SILENT_TIMES * self.timeout
        with closing(api.get(self.url("system/df"), params=only, timeout=timeout_s)) as response:
            if not response.ok:
                raise Unavailable(f"the engine does not count its disk use: {response.text[:200].strip()}")
            return response.json()

    def _set_request_timeout(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = self.timeout if "timeout" not in kwargs else _SILENT_TIMES * self.timeout
        return kwargs


class Engine:
    """An engine, which may come and go.

    Args:
        endpoints: where it may be, in order.
        timeout_s: for the answer to one call.
        threads: calls under way at once.
        starts: containers created or started at once; more would only wait inside the engine.
    """

    def __init__(self, endpoints: list[Endpoint], *, timeout_s: float = 60, threads: int = 16, starts: int = 4) -> None:
        self._endpoints = endpoints
        self.timeout_s = timeout_s
        self._pool = ThreadPoolExecutor(threads, "docker")
        self._long_pool = ThreadPoolExecutor(_LONG_THREADS, "docker-long")
        self._look_pool = ThreadPoolExecutor(1, "docker-look")  # its own: whether the engine answers never has to queue
        self._starts = asyncio.Semaphore(starts)
        self._client: Client | None = None
        self._connecting = threading.Lock()
        self._facts: RuntimeFacts | None = None

    async def describe(self) -> RuntimeFacts:
        """Return the engine's facts, asking anew whether it answers.

        Raises:
            Unavailable: no engine answers; the message says where it was looked for.
        """
        return await self._run(self._look_pool, self._describe)

    def api(self) -> Client:
        """Return the engine's client.

        Raises:
            Unavailable: no engine has answered.
        """
        if self._client is None:
            raise Unavailable("the Docker engine does not answer")
        return self._client

    async def call(self, call: Callable[..., T], *args: Any) -> T:
        """Run *call* in a thread, and raise its errors as our own.

        A cancelled caller leaves only when the thread is done: no call outlives its task.
        """
        return await self._run(self._pool, call, *args)

    async def long_call(self, call: Callable[..., T], *args: Any, give_up: Callable[[], None] | None = None) -> T:
        """Do the same for what moves bytes. What can be told to *give_up* is told, and left to itself."""
        return await self._run(self._long_pool, call, *args, give_up=give_up)

    def in_thread(self, call: Callable[..., T], *args: Any) -> "asyncio.Future[T]":
        """Begin something that moves bytes; its errors come as they are."""
        return asyncio.get_running_loop().run_in_executor(self._long_pool, call, *args)

    async def create(self, config: dict[str, Any], name: str) -> str:
        """Create a container, in the place of one of that name, and return its id."""
        async with self._starts:
            create = partial(self.api().create_container_from_config, config, name)
            try:
                return (await self.call(create))["Id"]
            except WherryError as error:
                if "is already in use" not in error.message:
                    raise
                # Left by a try whose answer was lost. It was never started: `start` comes after this returns.
                await self.remove(name)
                return (await self.call(create))["Id"]

    async def start(self, handle: str, mend: Callable[[WherryError], Awaitable[bool]]) -> None:
        """Start a container; once more, if *mend* has done something about the error."""
        async with self._starts:
            try:
                await self.call(self.api().start, handle)
            except WherryError as error:
                if not await mend(error):
                    raise
                await self.call(self.api().start, handle)

    async def remove(self, name: str) -> None:
        """Remove a container and its own volumes; one that is not there is no error."""
        try:
            await self.call(partial(self.api().remove_container, name, v=True, force=True))
        except NotFound:
            return
        except WherryError as error:
            if "already in progress" not in error.message:
                raise
            with suppress(NotFound):  # till then its volumes are in use
                await self.call(partial(self.api().wait, name, timeout=int(self.timeout_s), condition="removed"))

    async def remove_quietly(self, name: str) -> None:
        """Do so if the engine lets us: what is left over is found and removed later."""
        with suppress(WherryError):
            await self.remove(name)

    def close(self) -> None:
        """Let go of the connection and the threads."""
        self._pool.shutdown(wait=True)
        self._long_pool.shutdown(wait=False, cancel_futures=True)
        self._look_pool.shutdown(wait=False, cancel_futures=True)
        if self._client is not None:
            self._client.close()

    async def _run(
        self, pool: ThreadPoolExecutor, call: Callable[..., T], *args: Any, give_up: Callable[[], None] | None = None
    ) -> T:
        def run() -> T:
            with translated("the Docker engine"):
                return call(*args)

        future = asyncio.get_running_loop().run_in_executor(pool, run)
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

    def _connect(self) -> tuple[Client, RuntimeFacts]:
        tried: list[str] = []
        for endpoint in self._endpoints:
            try:
                client = _client(endpoint, self.timeout_s)
                return client, _facts(client)
            except (docker.errors.DockerException, OSError, ValueError) as error:
                tried.append(f"{endpoint.url or 'nothing'} ({endpoint.why}): {_short(error)}")
        raise Unavailable("no Docker engine answers; tried " + "; ".join(tried))


def repository_of(reference: str) -> str:
    """Return an image's name without its tag or digest."""
    return docker.utils.parse_repository_tag(reference)[0]


@contextmanager
def translated(what: str) -> Generator[None]:
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


def _client(endpoint: Endpoint, timeout_s: float) -> Client:
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
    client: Any = Client(endpoint.url, timeout=_QUICK_TIMEOUT_S, tls=tls, use_ssh_client=True)
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


def _no_matter(done: "asyncio.Future[Any]") -> None:
    """Look at what became of something that nobody waits for."""
    if not done.cancelled():
        done.exception()
