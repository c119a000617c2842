"""One request, sent until it is answered."""

from client.wherry import protocol
from client.wherry.effects import Now, Pause, Request, Response, Script, Send
from client.wherry.errors import Unreachable

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 5.0


def backoff(tries: int, asked_s: float | None = None) -> float:
    """Return the longest pause before the next try, in seconds: doubling, or what the server asked for if longer."""
    return max(min(FIRST_PAUSE_S * 2 ** (tries - 1), LONGEST_PAUSE_S), asked_s or 0.0)


def call(request: Request, patience_s: float) -> Script[Response]:
    """Send *request* until it is answered; a repeatable one is tried again for *patience_s* seconds.

    Raises:
        WherryError: the server refused it, or could not be reached in that time.

    """
    started: float = yield Now()
    tries = 0
    while True:
        try:
            answer: Response = yield Send(request)
            error = protocol.problem(answer.status, answer.headers, answer.body)
            if error is None:
                return answer
        except Unreachable as lost:
            error = lost
        tries += 1
        pause = backoff(tries, error.retry_after_s)
        now: float = yield Now()
        if not (request.repeatable and error.retryable) or now - started + pause > patience_s:
            raise error
        yield Pause(pause)
