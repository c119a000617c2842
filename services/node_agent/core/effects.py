"""What an agent is to do: what comes out of the machine.

The first four are the journal's, written together before any other is carried out.
"""

from dataclasses import dataclass

from services.node_agent.core.attempt import Held
from services.node_agent.core.container import Key
from services.node_agent.core.lease import Lease
from shared.events import AttemptStarting
from shared.fleet import Order
from shared.model import Message
from shared.states import AttemptEventName


@dataclass(frozen=True, slots=True)
class Save:
    """Write the attempt down."""

    held: Held


@dataclass(frozen=True, slots=True)
class Drop:
    """Take the attempt and its reports out of the journal; only that it was here is kept, for a while."""

    key: Key


@dataclass(frozen=True, slots=True)
class SaveEpoch:
    """Remember the highest epoch seen."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the scheduler, for as long as it takes. The id is the same whoever sends it again."""

    key: Key
    name: AttemptEventName
    data: Message

    @property
    def id(self) -> str:
        """Return the report's id, without the node's part."""
        phase = f"-{self.data.phase}" if isinstance(self.data, AttemptStarting) else ""
        return f"{self.key.job_id}-{self.key.attempt}-{self.name.value}{phase}"


@dataclass(frozen=True, slots=True)
class NoteLease:
    """Note the lease for an agent after this one. A note that a power cut takes is no loss: the programs go with it."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Prepare:
    """Find or pull the image, stage the files, create the container.

    `again`: an agent before this one may have begun with it; what it left is removed first.
    """

    order: Order
    again: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Start the container, once, and follow it.

    `again`: an agent before this one may have asked for it, and the runtime may still be about to do it.
    """

    held: Held
    again: bool = False


@dataclass(frozen=True, slots=True)
class StartNoMore:
    """Should the start have failed so far, it is not tried again."""

    key: Key


@dataclass(frozen=True, slots=True)
class Follow:
    """Read on what a started program prints, and wait for its end."""

    held: Held


@dataclass(frozen=True, slots=True)
class Attend:
    """See whether a replica's program is well, again and again, and answer requests with it while it is."""

    held: Held


@dataclass(frozen=True, slots=True)
class Stop:
    """SIGTERM, and SIGKILL after the grace. A replica first answers what it has begun, within the grace too."""

    held: Held
    grace_s: float


@dataclass(frozen=True, slots=True)
class Abort:
    """Give up preparing, or bringing home."""

    key: Key


@dataclass(frozen=True, slots=True)
class Collect:
    """Bring home what it left."""

    held: Held


@dataclass(frozen=True, slots=True)
class Clear:
    """Kill what still runs; remove container, volumes and files."""

    held: Held


@dataclass(frozen=True, slots=True)
class HeartbeatNow:
    """Something changed that the scheduler waits for."""


Effect = (
    Save | Drop | SaveEpoch | Report | NoteLease | Prepare | Start | StartNoMore | Follow | Attend | Stop | Abort
    | Collect | Clear | HeartbeatNow
)  # fmt: skip
