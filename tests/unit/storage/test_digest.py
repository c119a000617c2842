import hashlib
import random

import pytest

from services.storage.core.digest import RunningDigest
from shared.requests.blobs import CHUNK_BYTES, WINDOW_CHUNKS

FULL = [bytes([number]) * CHUNK_BYTES for number in range(5)]
CHUNKS = [*FULL, b"the short end"]
WHOLE = b"".join(CHUNKS)


@pytest.mark.parametrize("seed", range(5))
def test_chunks_in_any_order_give_the_digest_of_the_whole(seed: int) -> None:
    numbers = list(range(len(CHUNKS)))
    random.Random(seed).shuffle(numbers)
    digest = RunningDigest()
    for number in numbers:
        digest.take(number, CHUNKS[number])
    assert digest.is_whole(len(CHUNKS), len(WHOLE))
    assert digest.hexdigest() == hashlib.sha256(WHOLE).hexdigest()


def test_a_repeated_chunk_changes_nothing() -> None:
    digest = RunningDigest()
    for number, chunk in enumerate(CHUNKS):
        digest.take(number, chunk)
        digest.take(number, b"x" * len(chunk))
    assert digest.hexdigest() == hashlib.sha256(WHOLE).hexdigest()


def test_it_is_not_whole_while_a_chunk_is_missing() -> None:
    digest = RunningDigest()
    for number in (0, 2, 3):
        digest.take(number, FULL[number])
    assert not digest.is_whole(4, 4 * CHUNK_BYTES)
    digest.take(1, FULL[1])
    assert digest.is_whole(4, 4 * CHUNK_BYTES)


def test_a_short_chunk_in_the_middle_is_never_whole() -> None:
    digest = RunningDigest()
    for number, chunk in enumerate((FULL[0], b"short", FULL[1])):
        digest.take(number, chunk)
    assert not digest.is_whole(3, 2 * CHUNK_BYTES + 5)


def test_it_holds_no_more_than_two_windows_that_wait_for_an_earlier_chunk() -> None:
    digest = RunningDigest()
    for number in range(1, 2 * WINDOW_CHUNKS + 5):
        digest.take(number, b"x")
    assert len(digest._ahead) <= 2 * WINDOW_CHUNKS
    assert not digest.is_whole(2 * WINDOW_CHUNKS + 5, 2 * WINDOW_CHUNKS + 5)


def test_an_empty_blob_is_whole_with_nothing() -> None:
    assert RunningDigest().is_whole(0, 0)
    assert RunningDigest().hexdigest() == hashlib.sha256(b"").hexdigest()
