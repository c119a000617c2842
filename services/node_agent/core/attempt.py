"""An attempt as this node has it: its order, and how far it is."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum

from services.node_agent.core.container import Key
from shared.fleet import Order
from shared.job import Failure
from shared.model import Message
from shared.states import AttemptState


class Phase(StrEnum):
    """How far an attempt is on this node."""

    ACCEPTED = "accepted"  # in the journal; its image is being looked for
    PULLING = "pulling"
    STAGING = "staging"
    STARTING = "starting"  # its container exists and is about to be started, once
    WARMUP = "warmup"  # a replica's program runs, and is not ready yet
    RUNNING = "running"
    FINISHING = "finishing"  # the program has ended; what it left is being stored
    FINISHED = "finished"  # its last report is in the outbox, or delivered
    FORGETTING = "forgetting"  # nobody wants it any more; it is being removed


PREPARING = frozenset({Phase.ACCEPTED, Phase.PULLING, Phase.STAGING})
#: Its program runs.
STARTED = frozenset({Phase.WARMUP, Phase.RUNNING})
BEFORE_END = PREPARING | {Phase.STARTING} | STARTED
_STATE_OF: Mapping[Phase, AttemptState] = {
    Phase.ACCEPTED: AttemptState.STARTING,
    Phase.PULLING: AttemptState.STARTING,
    Phase.STAGING: AttemptState.STARTING,
    Phase.STARTING: AttemptState.STARTING,
    Phase.WARMUP: AttemptState.STARTING,
    Phase.RUNNING: AttemptState.RUNNING,
    Phase.FINISHING: AttemptState.FINISHING,
}


class End(Message):
    """What the attempt's last report will say."""

    state: AttemptState
    failure: Failure | None = None


class Held(Message):
    """An attempt as the journal has it. `stop` is set once somebody wants it to end before it does so by itself."""

    order: Order
    phase: Phase = Phase.ACCEPTED
    since: datetime  # of the phase
    handle: str = ""  # what the runtime calls it: a container's id
    image_digest: str | None = None
    running_at: datetime | None = None
    stop: End | None = None
    stop_grace_s: float = 10.0
    exit_code: int | None = None
    end: End | None = None
    is_delivered: bool = False
    is_cleared: bool = False
    is_fenced: bool = False  # it was told to end because nobody grants a lease
    boot_id: str = ""  # of the machine's start under which the program was started

    @property
    def key(self) -> Key:
        """Return which attempt it is."""
        return Key(self.order.job_id, self.order.attempt)

    def is_of_earlier_boot(self, boot_id: str) -> bool:
        """Return whether its program was started before the machine was: nothing runs on over a reboot."""
        return self.boot_id not in ("", boot_id)

    def state(self, boot_id: str) -> AttemptState | None:
        """Return what the heartbeat says of it; None: nothing."""
        if self.phase in (Phase.STARTING, *STARTED) and self.is_of_earlier_boot(boot_id):
            return AttemptState.FINISHING  # how it ended is being found out
        if self.phase is Phase.FINISHED:
            return self.end.state if self.end else AttemptState.FAILED
        return _STATE_OF.get(self.phase)
