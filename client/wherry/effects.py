"""What a script may ask of its driver.

Every operation of the client is written once, in `scripts`, as a generator that yields these and is sent the answer.
The two drivers, one that blocks and one for asyncio, do no more than carry them out.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes to send. `chunks` makes them afresh for each try; `length` is None when it is not known beforehand."""

    chunks: Callable[[], Iterator[bytes]]
    length: int | None
    media_type: str


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `repeatable` says that sending it twice does no harm; times are seconds."""

    method: str
    path: str
    query: Mapping[str, str | list[str]] = field(default_factory=dict[str, "str | list[str]"])
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    json: Any = None
    body: Body | None = None
    repeatable: bool = True
    read_timeout_s: float | None = None  # the longest silence; None: the client's own


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Stream:
    """An answer that is still arriving. `body` is whole when `status` is an error. The rest is the driver's."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    chunks: Any = None
    response: Any = None


@dataclass(frozen=True, slots=True)
class Send:
    """Send a request; answered with a `Response`, or `Unreachable` is raised."""

    request: Request


@dataclass(frozen=True, slots=True)
class Open:
    """Begin a request whose answer is a stream of bytes, or of server-sent events; answered with a `Stream`."""

    request: Request
    events: bool = False


@dataclass(frozen=True, slots=True)
class Read:
    """Take the next chunk or event of a stream; answered with None at its end. `Unreachable` if it broke."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Close:
    """Be done with a stream. Streams left open are closed when the script ends."""

    stream: Stream


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait for between half of `seconds` and all of it, so that clients do not come back in step."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Now:
    """Read a clock that never jumps; answered in seconds."""


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """Do something on the disk that takes a while; answered with its result."""

    function: Callable[[], T]


@dataclass(frozen=True, slots=True)
class Emit(Generic[T]):
    """Hand an item to whoever iterates."""

    item: T


Effect: TypeAlias = Send | Open | Read | Close | Pause | Now | Work[Any]
#: An operation with one result.
Script: TypeAlias = Generator[Effect, Any, T]
#: An operation that gives items as it goes.
Series: TypeAlias = Generator[Effect | Emit[T], Any, None]
