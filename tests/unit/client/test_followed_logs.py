"""A log that is followed over many connections leaves none of them behind."""

from types import SimpleNamespace
from typing import Any

from client.wherry import models, scripts
from client.wherry.effects import Close, Emit, Now, Open, Read, Stream
from client.wherry.errors import Unreachable
from client.wherry.protocol import LogChoice


def test_a_connection_that_broke_is_closed_before_the_next_is_opened() -> None:
    script = scripts.follow("j1", LogChoice(), 60.0)
    opened, closed = 0, 0
    found: list[Any] = []
    answer: Any = None
    breaks = False
    while True:
        try:
            effect = script.throw(Unreachable("it broke")) if breaks else script.send(answer)
        except StopIteration:
            break
        answer, breaks = None, False
        match effect:
            case Open():
                assert opened == closed
                opened += 1
                answer = Stream(200, {"content-type": "text/event-stream"})
            case Read() if opened < 4:
                breaks = True
            case Read():
                answer = SimpleNamespace(id="1.1", event="end", data='{"state": "succeeded"}')
            case Close():
                closed += 1
            case Now():
                answer = 0.0
            case Emit(item):
                found.append(item)
            case _:
                pass
    assert found == [models.End(state="succeeded")]
    assert opened == 4
