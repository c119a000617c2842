"""How an attempt ended, from what the runtime says of its program."""

import signal
from dataclasses import dataclass

from shared.errors import WherryError
from shared.job import Failure
from shared.states import EndReason

#: What shells, and the init process of containers, exit with when there is no such command, or it cannot be executed.
COMMAND_NOT_FOUND_EXITS = (126, 127)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a program. `failure` is set when the runtime itself knows why."""

    exit_code: int | None
    is_oom: bool = False
    failure: Failure | None = None


def failure_of(outcome: Outcome, command: str) -> Failure | None:
    """Return why the attempt failed; None if it succeeded. *command* is what was run, for the message."""
    if outcome.failure is not None:
        return outcome.failure
    code = outcome.exit_code
    if outcome.is_oom:
        return Failure(
            reason=EndReason.OOM, message="The program needed more memory than it was promised and was killed."
        )
    if code == 0:
        return None
    if code in COMMAND_NOT_FOUND_EXITS:
        what = "was not found" if code == 127 else "cannot be executed"
        message = f"The command {command!r}, or one that it calls, {what} (exit code {code})."
        return Failure(reason=EndReason.COMMAND_NOT_FOUND, message=message)
    return Failure(reason=EndReason.EXIT_CODE, message=f"The program ended with exit code {code}{_signal(code)}.")


#: What a program ends with that is killed as its machine goes down: 255 where the engine found it dead afterwards.
_KILLED_EXITS = (137, 143, 255)


def by_reboot(outcome: Outcome, failure: Failure) -> Failure:
    """Return why an attempt failed whose machine was started anew since: the reboot, unless it had ended before."""
    if failure.reason is EndReason.AGENT_LOST_CONTAINER or (outcome.exit_code in _KILLED_EXITS and not outcome.is_oom):
        return Failure(reason=EndReason.NODE_REBOOTED, message="The machine was restarted while the program ran.")
    return failure


def failure_from(error: WherryError) -> Failure:
    """Return *error* as an end: its code where it is one of the reasons, else the machine's fault."""
    try:
        reason = EndReason(error.code)
    except ValueError:
        reason = EndReason.RUNTIME_ERROR
    return Failure(reason=reason, message=error.message)


def _signal(code: int | None) -> str:
    try:
        return f" ({signal.Signals(code - 128).name})" if code is not None and code > 128 else ""
    except ValueError:
        return ""
