"""What a node may answer to a request for one of its replicas, and what it may not."""

from typing import Any, cast

import pytest

from services.gateway.adapters.replica import LOST, Wish, ask
from shared.bus import Raw
from shared.errors import NoAnswer, Unavailable, WherryError
from shared.requests.blobs import CHUNK_BYTES
from shared.requests.serving import SERVE_HEADER, ServeStep

WISH = Wish("GET", "/v1/models/model", (), b"")


class OneAnswer:
    """A bus on which each step gets the same answer."""

    def __init__(self, head: str, body: bytes = b"") -> None:
        self.answer = Raw(body, {SERVE_HEADER: head})
        self.steps = 0

    async def ask_raw(self, *_: Any, **__: Any) -> Raw:
        self.steps += 1
        return self.answer

    async def send(self, *_: Any) -> None:
        pass


async def refused(bus: OneAnswer) -> str:
    with pytest.raises(WherryError) as refusal:
        await ask(cast("Any", bus), "n1", "j1", WISH, 1.0, bytes_max=1000)
    return refusal.value.code


async def test_an_answer_that_is_there_at_once_is_one_step():
    bus = OneAnswer('{"status":200,"size":5}', b"hello")
    assert (await ask(cast("Any", bus), "n1", "j1", WISH, 1.0)).body == b"hello"
    assert bus.steps == 1


async def test_a_node_that_announces_more_than_anybody_takes_is_asked_for_nothing_of_it():
    bus = OneAnswer('{"status":200,"size":1000000000000000}')
    assert await refused(bus) == "answer_too_large"
    assert bus.steps == 1


@pytest.mark.parametrize("status", [-1, 99, 101, 600, 999])
async def test_what_is_no_status_of_an_answer_is_not_passed_on(status: int):
    assert await refused(OneAnswer(f'{{"status":{status}}}')) == "model_failed"


@pytest.mark.parametrize("head", ["", "{", "[]", '{"status":"ok"}'])
async def test_an_answer_that_cannot_be_understood_is_a_lost_one(head: str):
    assert await refused(OneAnswer(head)) == LOST


class Failing:
    """A bus on which the step number *at* fails with *error*; each other one is answered with nothing."""

    def __init__(self, at: int, error: WherryError) -> None:
        self.at, self.error, self.steps = at, error, 0

    async def ask_raw(self, *_: Any, **__: Any) -> Raw:
        self.steps += 1
        if self.steps == self.at:
            raise self.error
        return Raw(b"", {SERVE_HEADER: "{}"})

    async def send(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("body", "at", "error", "code"),
    [
        # The broker says that nobody listens: the node has not got it. That nothing comes back says nothing.
        (b"", 1, Unavailable("nobody"), "unavailable"),
        (b"", 1, NoAnswer("no answer in time"), LOST),
        # A part of the body alone was never put to the program.
        (bytes(2 * CHUNK_BYTES), 1, NoAnswer("no answer in time"), "unavailable"),
        # It was put to it, and was still at work.
        (b"", 2, Unavailable("nobody"), LOST),
        (b"", 2, NoAnswer("no answer in time"), LOST),
    ],
)
async def test_only_what_may_have_reached_the_program_is_lost(body: bytes, at: int, error: WherryError, code: str):
    with pytest.raises(WherryError) as refusal:
        await ask(cast("Any", Failing(at, error)), "n1", "j1", Wish("POST", "/v1/orders", (), body), 1.0)
    assert refusal.value.code == code


class Large:
    """A bus on which a node has an answer of three pieces, and remembers what it was asked for."""

    size = 3 * CHUNK_BYTES

    def __init__(self) -> None:
        self.offsets: list[int] = []

    async def ask_raw(self, _: Any, __: bytes, headers: dict[str, str], **___: Any) -> Raw:
        step = ServeStep.from_bytes(headers[SERVE_HEADER].encode())
        self.offsets.append(step.offset)
        return Raw(bytes(CHUNK_BYTES), {SERVE_HEADER: f'{{"status":200,"size":{self.size}}}'})

    async def send(self, *_: Any) -> None:
        pass


async def test_a_large_answer_is_fetched_once_there_is_room_for_it():
    bus, sizes = Large(), list[int]()

    async def room(size: int) -> None:
        assert bus.offsets == [0]
        sizes.append(size)

    answer = await ask(cast("Any", bus), "n1", "j1", WISH, 30, room=room)
    assert (len(answer.body), sizes, sorted(bus.offsets)) == (
        Large.size,
        [Large.size],
        [0, CHUNK_BYTES, 2 * CHUNK_BYTES],
    )

    async def full(_: int) -> None:
        raise WherryError("busy", "full")

    bus.offsets.clear()
    with pytest.raises(WherryError, match="full"):
        await ask(cast("Any", bus), "n1", "j1", WISH, 30, room=full)
    assert bus.offsets == [0]
