"""What the agent needs of the outside: a runtime that runs programs, and a store for their results."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
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
    """What a runtime says of itself. `cpus` and `memory` (bytes) are its machine's; None: the agent's own."""

    text: str
    cpus: float | None = None
    memory: int | None = None
    arch: str | None = None


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

    async def stage(self, order: Order, image: Image, source: Fetch, inputs: Provide = no_inputs) -> str:
        """Put files in place, make the container ready to be started, and return its handle.

        *source* gives a zip, *inputs* what `fill_input` has made of each input.
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

    async def outcome(self, key: Key, handle: str) -> Outcome | None:
        """Return how the program ended, None while it runs; raise `NotFound` when nobody knows."""
        ...

    async def kill(self, key: Key, handle: str, signal: Literal["SIGTERM", "SIGKILL"]) -> None:
        """Send *signal*; what has ended already is no error."""
        ...

    def outputs(self, key: Key, handle: str, below: str = "") -> AsyncIterator[Output]:
        """Give everything in the outputs, or only what is at *below* and under it; paths are whole in either case.

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
