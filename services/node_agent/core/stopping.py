"""How an attempt ends that is made to end: by the scheduler, by a limit, or by this node."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from services.node_agent.core.attempt import STARTED, End, Held, Phase
from shared.job import Failure
from shared.spec import Service, Timeouts
from shared.states import AttemptState, EndReason


def failed(reason: EndReason, message: str) -> End:
    """Return the end of an attempt that failed for *reason*."""
    return End(state=AttemptState.FAILED, failure=Failure(reason=reason, message=message))


_CANCELLED = End(
    state=AttemptState.CANCELLED, failure=Failure(reason=EndReason.CANCELLED_BY_USER, message="It was told to stop.")
)
FENCED = failed(
    EndReason.FENCED, "The node was cut off and stopped it, for it must not run twice and another node may start it."
)
UNKILLABLE = failed(EndReason.UNKILLABLE, "SIGKILL did not end the program within a minute.")
_WHY: Mapping[EndReason, str] = {
    EndReason.FINISHING_TIMEOUT: "What it left could not be stored in time.",
    EndReason.NODE_DRAINED: "The node is being emptied.",
    EndReason.AGENT_LOST_CONTAINER: "The node had not begun with it in time.",
}
#: The limits that the agent itself keeps.
_LIMIT_OF: Mapping[Phase, EndReason] = {
    Phase.ACCEPTED: EndReason.PULL_TIMEOUT,
    Phase.PULLING: EndReason.PULL_TIMEOUT,
    Phase.STAGING: EndReason.STAGE_IN_TIMEOUT,
    Phase.RUNNING: EndReason.RUN_TIMEOUT,
}


@dataclass(frozen=True, slots=True)
class _Limit:
    """What may take so many seconds."""

    what: str
    seconds: float
    more: str = ""


def _limit(reason: EndReason, timeouts: Timeouts) -> _Limit | None:
    match reason:
        case EndReason.PULL_TIMEOUT:
            return _Limit("Pulling the image", timeouts.pull)
        case EndReason.STAGE_IN_TIMEOUT:
            return _Limit("Bringing the files", timeouts.stage_in)
        case EndReason.RUN_TIMEOUT:
            return _Limit("The program", timeouts.run)
        case EndReason.TOTAL_TIMEOUT:
            return _Limit("The job", timeouts.total, " in all")
        case _:
            return None


def _timed_out(reason: EndReason, limit: _Limit) -> End:
    message = f"{limit.what} took longer than {limit.seconds:g} s{limit.more}."
    return End(state=AttemptState.TIMED_OUT, failure=Failure(reason=reason, message=message))


def end_of(reason: EndReason | None, timeouts: Timeouts) -> End:
    """Return how an attempt ends that the scheduler wants stopped."""
    if reason is None or reason is EndReason.CANCELLED_BY_USER:
        return _CANCELLED
    if (limit := _limit(reason, timeouts)) is not None:
        return _timed_out(reason, limit)
    return failed(reason, _WHY.get(reason, "It was told to stop."))


def overdue(held: Held, now: datetime) -> End | None:
    """Return how an attempt ends that is in its phase for longer than it may be; None while it may."""
    in_phase_s = (now - held.since).total_seconds()
    service = held.order.service
    if service is not None and held.phase in STARTED:  # once it is ready, it runs for as long as it is wanted
        is_late = held.phase is Phase.WARMUP and in_phase_s >= service.start_timeout
        return _not_ready(service) if is_late else None
    reason = _LIMIT_OF.get(held.phase)
    limit = None if reason is None else _limit(reason, held.order.spec.timeouts)
    if reason is None or limit is None or in_phase_s < limit.seconds:
        return None
    return _timed_out(reason, limit)


def _not_ready(service: Service) -> End:
    what = f"GET {service.health} did not answer 2xx" if service.health else "nothing listened"
    message = f"It was not ready within {service.start_timeout:g} s: {what} on port {service.port}."
    return failed(EndReason.UNHEALTHY, message)
