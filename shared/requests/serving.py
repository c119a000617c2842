"""Requests to replicas of services, from the gateway to the agent."""

from typing import Literal

from shared.model import Message

#: In the header SERVE_HEADER of each step, and of its answer.
SERVE_HEADER = "Wherry-Serve"


class ServeStep(Message):
    """One step of a request to a replica. Its id is the gateway's, and its replica is in the subject.

    ``part`` brings a piece of a body that is larger than one chunk, at `offset`; ``ask`` comes when all of it is there,
    or has it with it; ``more`` asks for the answer from `offset` on; ``drop``: nobody waits for it any more.
    """

    request_id: str
    step: Literal["ask", "part", "more", "drop"] = "ask"
    method: str = "GET"
    path: str = "/"  # with its query
    headers: tuple[tuple[str, str], ...] = ()
    size: int = 0  # bytes of the whole body
    offset: int = 0
    timeout_s: float = 60  # that the program has
    repeatable: bool = True  # it does no harm to put it to the program twice


class ServeAnswer(Message):
    """The head of an answer; a piece of its body comes with it. No status: the program is still at it, ask again."""

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    size: int = 0  # bytes of the whole body
    took_s: float = 0  # that the program had for it
