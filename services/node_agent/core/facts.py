"""What an agent finds out, and is told: what goes into the machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from services.node_agent.core.container import Key
from services.node_agent.core.ending import Outcome
from shared.fleet import DesiredState
from shared.job import Failure, OutputsRef


@dataclass(frozen=True, slots=True)
class Desired:
    """The scheduler's answer to a heartbeat, which was sent at `asked_at` (None: nobody measured, no lease)."""

    state: DesiredState
    asked_at: float | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """A runtime answers, and this is what it has of ours. Comes first of all facts about its attempts."""

    runtime: str
    found: Mapping[Key, tuple[str, Literal["created", "started"]]]  # handle, and whether it ever ran


@dataclass(frozen=True, slots=True)
class ImageMissing:
    """The image is not on the machine: the pull begins."""

    key: Key


@dataclass(frozen=True, slots=True)
class ImageFound:
    """The image is on the machine."""

    key: Key
    digest: str | None


@dataclass(frozen=True, slots=True)
class Staged:
    """Files are in place and the container exists."""

    key: Key
    handle: str


@dataclass(frozen=True, slots=True)
class Started:
    """The program runs, or has run."""

    key: Key


@dataclass(frozen=True, slots=True)
class Ready:
    """A replica is well for the first time."""

    key: Key


@dataclass(frozen=True, slots=True)
class Unhealthy:
    """A replica that was ready answers no more; `why` is a sentence."""

    key: Key
    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The program could not be brought to run."""

    key: Key
    failure: Failure


@dataclass(frozen=True, slots=True)
class Exited:
    """The program has ended, and all that it printed is read."""

    key: Key
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Unkillable:
    """The program runs on, long after SIGKILL."""

    key: Key


@dataclass(frozen=True, slots=True)
class OverDisk:
    """The program has written more than it was promised: `used` bytes."""

    key: Key
    used: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """A worker has not answered for `item` in time."""

    key: Key
    item: str


@dataclass(frozen=True, slots=True)
class Collected:
    """What it left is stored, or cannot be."""

    key: Key
    outputs: OutputsRef | None
    remarks: tuple[str, ...] = ()
    failure: Failure | None = None
    peaks: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class Delivered:
    """The log has acknowledged the attempt's last report."""

    key: Key


@dataclass(frozen=True, slots=True)
class Cleared:
    """Its container, volumes and files are gone."""

    key: Key


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. `at` is what leases are measured by: seconds that also pass while the machine is suspended."""

    at: float | None = None


Fact = (
    Desired | Recovered | ImageMissing | ImageFound | Staged | Started | Ready | Unhealthy | Stuck | Failed | Exited
    | Unkillable | OverDisk | Collected | Delivered | Cleared | Tick
)  # fmt: skip
