"""What the agent needs of the outside: a runtime that runs programs, and a store for their results."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from services.node_agent.core.container import Key
from services.node_agent.core.ending import Outcome
from services.node_agent.core.shelf import Given
from services.node_agent.core.use import Use
from shared.fleet import Order


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """What a runtime says of itself. `cpus` and `memory` (bytes) are its machine's; None: the agent's own.

    Two agents that find the same `engine_id`, where there is one, use the same engine.
    """

    text: str
    cpus: float | None = None
    memory: int | None = None
    arch: str | None = None
    engine_id: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image on the machine. `digest` pins it: ``repo@sha256:…``, or the bare id of one that no registry knows."""

    id: str
    digest: str | None
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes that a program printed. `position` is JSON: given to `follow`, it goes on behind this chunk."""

    stream: Literal["o", "e"]
    at: datetime
    data: bytes
    position: dict[str, Any]


Sink = Callable[[Chunk], None]
#: Brings files to the agent's disk when they are wanted; None where there are none.
Fetch = Callable[[], Awaitable[Path | None]]


@dataclass(frozen=True, slots=True)
class Access:
    """The door of an attempt with network ``api``: the port at which its program finds it, and what it shows there."""

    port: int
    token: str

    @property
    def url(self) -> str:
        """Return what the program is given as WHERRY_API."""
        return f"http://127.0.0.1:{self.port}"


class Connection(Protocol):
    """Bytes in both directions."""

    async def receive(self) -> bytes:
        """Return the next bytes; nothing at the end.

        Raises:
            OSError: the connection is gone.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Send, waiting while the other side takes nothing; raise OSError where it is gone."""
        ...

    async def close(self) -> None:
        """Close it, once what was sent has been taken."""
        ...


#: Serves one connection that a program has made, and closes it.
ServeConnection = Callable[[Connection], Coroutine[Any, Any, None]]


class Door(Protocol):
    """What brings the connections of one program to this agent."""

    async def wait(self) -> None:
        """Return once nothing comes through it any more, whatever the reason."""
        ...

    async def close(self) -> None:
        """Let go of it; a program that runs on finds it again once another agent has opened it."""
        ...


class Doors(Protocol):
    """The doors of a runtime's programs: to this agent, and to nobody else."""

    @property
    def needs_image(self) -> str:
        """Return the image without which there are none; nothing where none is needed."""
        ...

    async def port(self) -> int:
        """Return a port for the door of another program."""
        ...

    async def open(self, order: Order, handle: str, port: int, serve: ServeConnection) -> Door:
        """Return a door that is open: before the program is started, or while it runs.

        Raises:
            NotFound: the program has ended.
            WherryError: it cannot be opened (retryable: now).
        """
        ...

    async def put(self, key: Key, handle: str, pieces: Iterator[bytes]) -> None:
        """Unpack a tar, read in a thread, in the outputs. A link there is not followed, and no folder is replaced.

        Raises:
            WherryError: ``conflict``, ``not_running``.
        """
        ...


#: Brings the inputs of an attempt to the machine, and says where each is, by its name.
Provide = Callable[[], Awaitable[Mapping[str, Given]]]


async def no_inputs() -> Mapping[str, Given]:
    """Bring nothing."""
    return {}


class Following(Protocol):
    """A reader of what a program prints, in a thread of its own."""

    async def wait(self) -> None:
        """Return when nothing more comes: the program has ended, or the reader was closed.

        Raises:
            WherryError: the runtime did not answer any more (retryable), or the program is gone (`NotFound`).
        """
        ...

    def close(self) -> None:
        """Stop reading."""
        ...


@dataclass(frozen=True, slots=True)
class Output:
    """Something that was left in the outputs. `chunks` must be read before the next is asked for.

    `body` is the whole content of a small file. A "link" is one of two names of one file: `target` was given before.
    """

    path: str
    kind: Literal["file", "dir", "link", "other"]
    mode: int = 0o644
    mtime: float = 0.0
    size: int = 0
    body: bytes | None = None
    chunks: AsyncIterator[bytes] | None = None
    target: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Something with our labels on it. `handle` is set for what runs, or will run, a program."""

    key: Key
    created_at: datetime
    handle: str = ""
    condition: Literal["created", "started"] = "created"


class Runtime(Protocol):
    """Runs programs. Errors are `WherryError`: an `EndReason` as code where the job is to blame, else retryable."""

    name: str

    @property
    def doors(self) -> Doors:
        """Return what gives programs with network ``api`` their door."""
        ...

    async def describe(self) -> RuntimeFacts:
        """Return what it is; raise ``unavailable``, saying what was tried, where it does not answer."""
        ...

    async def find_image(self, order: Order) -> Image | None:
        """Return the image if it is on the machine."""
        ...

    async def pull_image(self, order: Order, tell: Callable[[float, str], None]) -> Image:
        """Bring the image; *tell* hears a fraction and words.

        Raises:
            WherryError: ``image_not_found``; ``image_pull_failed``, retryable where another try may be luckier.
        """
        ...

    async def images(self) -> tuple[str, ...]:
        """Return names and digests of the images on the machine."""
        ...

    async def stage(
        self, order: Order, image: Image, source: Fetch, inputs: Provide = no_inputs, access: Access | None = None
    ) -> str:
        """Put files in place, make the container ready to be started, and return its handle.

        *source* gives a zip, *inputs* what `fill_input` has made of each input; *access* is for network ``api``.
        """
        ...

    async def fill_input(self, volume: str, image: str, pieces: Iterator[bytes]) -> None:
        """Make a volume of what is in the folder FILL_ROOT of a tar, read in a thread. *image* is an image's id."""
        ...

    async def has_input(self, volume: str) -> bool:
        """Return whether a volume is there."""
        ...

    async def inputs(self) -> frozenset[str]:
        """Return all volumes of inputs, broken ones too."""
        ...

    async def drop_input(self, volume: str) -> bool:
        """Remove a volume. Return False if something uses it."""
        ...

    async def start(self, key: Key, handle: str) -> None:
        """Start the program."""
        ...

    def follow(self, key: Key, handle: str, position: dict[str, Any] | None, sink: Sink) -> Following:
        """Begin to give what the program prints to *sink*, in a thread, behind *position*."""
        ...

    async def address(self, key: Key, handle: str, port: int) -> tuple[str, int]:
        """Return host and port at which this agent reaches what a replica was told to offer at *port*.

        Raises:
            NotFound: the program is gone.
        """
        ...

    async def outcome(self, key: Key, handle: str) -> Outcome | None:
        """Return how the program ended, None while it runs; raise `NotFound` when nobody knows."""
        ...

    async def kill(self, key: Key, handle: str, signal: Literal["SIGTERM", "SIGKILL"]) -> None:
        """Send *signal*; what has ended already is no error."""
        ...

    def seen(self, key: Key) -> tuple[str, str]:
        """Return where the program of an attempt finds its workspace and its inputs."""
        ...

    async def put(self, key: Key, handle: str, pieces: Iterator[bytes]) -> None:
        """Put what is in a tar, read in a thread, into the workspace of a program that runs."""
        ...

    async def tell(self, key: Key, handle: str, lines: bytes) -> None:
        """Write *lines* to the standard input of a worker. They may be lost, where the worker does not read.

        Raises:
            NotFound: the program is gone.
            Unavailable: it takes nothing now.
        """
        ...

    def outputs(
        self, key: Key, handle: str, below: str = "", *, of: Literal["outputs", "items"] = "outputs"
    ) -> AsyncIterator[Output]:
        """Give everything in the outputs, or only what is at *below* and under it; paths are whole in either case.

        *of* items: in what the items of a worker have left, a folder for each.

        The program may still run: then each file is as long as it was when its turn came, and what goes away is left
        out.

        Raises:
            NotFound: there are no outputs, or nothing is at *below*.
        """
        ...

    async def disk_used(self, keys: Collection[Key]) -> Mapping[Key, int]:
        """Return the bytes on disk that the programs of *keys* have written; what is not known is left out."""
        ...

    async def use(self, key: Key, handle: str) -> Use | None:
        """Return what a running program uses now; None where nobody knows."""
        ...

    async def clear(self, key: Key) -> None:
        """Remove everything that belongs to the attempt. Safe to repeat."""
        ...

    async def found(self) -> list[Found]:
        """Return everything that this agent made, whether it knows it or not."""
        ...

    async def close(self) -> None:
        """Let go of connections and threads; programs run on."""
        ...
