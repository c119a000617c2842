"""What is wrong with a node, in words for the people who look after it."""

from collections.abc import Iterable, Mapping

from services.node_agent.core.attempt import Held
from services.node_agent.core.lease import Older
from shared.states import EndReason


def problem(
    held: Iterable[Held], engines: Mapping[str, str], older: Older | None, epoch: int, at: float, gpus: str = ""
) -> str:
    """Return everything that is wrong, as one text; empty when all is well.

    Args:
        held: attempts of the journal.
        engines: why a runtime does not answer, by its name; empty where it does.
        older: what answers instead of the newest scheduler that was seen.
        epoch: that one's.
        at: the time by which `older` is measured.
        gpus: why the GPUs cannot be read.
    """
    alive = [f"{one.key.job_id}-{one.key.attempt}" for one in held if _runs_on(one)]
    found = [f"{name}: {why}" for name, why in engines.items() if why]
    if gpus:
        found.append(f"GPUs: {gpus}")
    if alive:
        found.append(f"SIGKILL does not end {', '.join(alive)}")
    if older is not None and older.is_for_good(at):
        found.append(
            f"only a scheduler of epoch {older.epoch} answers, and one of {epoch} has been seen: its log was wiped or "
            "restored; it is ignored until its epoch is higher"
        )
    return "; ".join(found)


def _runs_on(held: Held) -> bool:
    failure = held.end.failure if held.end else None
    return failure is not None and failure.reason is EndReason.UNKILLABLE and not held.is_cleared
