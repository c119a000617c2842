"""What the answers of the broker mean, and how long to wait before it is asked again."""

import json
import random
from typing import Any

from nats.aio.msg import Msg

from shared.errors import Conflict, NotFound, WherryError


class Unanswered(Exception):
    """No answer came; `sent` tells whether the message may have arrived."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class LateConflict(Conflict):
    """A conflict found only after a try that was not answered."""


class Backoff:
    """Delays that double from *first_s* to *last_s*, with jitter."""

    def __init__(self, first_s: float = 0.2, last_s: float = 5.0) -> None:
        self._first_s, self._last_s, self._next_s = first_s, last_s, first_s

    def next_s(self) -> float:
        delay, self._next_s = self._next_s, min(self._next_s * 2, self._last_s)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, not a secret

    def reset(self) -> None:
        self._next_s = self._first_s


def status_of(message: Msg) -> int | None:
    """Return the status of a message that the server itself sent, or None."""
    status = (message.headers or {}).get("Status", "") if not message.data else ""
    return int(status) if status.isdigit() else None


def api_answer(message: Msg) -> dict[str, Any]:
    """Return the JSON of an answer from JetStream.

    Raises:
        Unanswered: nothing listens (no such stream, or the server is still starting).
    """
    if status_of(message) == 503:
        raise Unanswered("no stream listens there", sent=False)
    return json.loads(message.data)


def checked(call: str, said: dict[str, Any]) -> dict[str, Any]:
    problem = said.get("error")
    if problem is None:
        return said
    text = f"{call}: {problem.get('description')} ({problem.get('err_code')})"
    match int(problem.get("code", 0)):
        case 404:
            raise NotFound(text)
        case 503:
            raise Unanswered(text, sent=False)
        case _:
            raise WherryError("stream_refused", text)
