"""What is durable of an upload that resumes, and its digest over several writers."""

import hashlib
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage.core.resumable import ResumedDigest, StoredChunk, chunk_count, durable, expected_size
from shared.requests.blobs import CHUNK_BYTES

FULL = CHUNK_BYTES


def chunks(*facts: tuple[int, int, int]) -> list[StoredChunk]:
    return [StoredChunk(*one) for one in facts]


@pytest.mark.parametrize(
    ("offset", "stored", "expected"),
    [
        (0, chunks(), 0),
        (0, chunks((0, FULL, 1), (1, FULL, 1), (2, 9, 1)), 2 * FULL + 9),
        (0, chunks((0, FULL, 1), (2, FULL, 1)), FULL),
        (0, chunks((1, FULL, 1)), 0),
        (0, chunks((0, 9, 1), (1, FULL, 1)), 9),
        (FULL, chunks((1, FULL, 1), (2, FULL, 0)), 2 * FULL),
        (9, chunks((0, 9, 0)), 9),
        (9, chunks((0, FULL, 0), (1, FULL, 1)), 9),
        (9, chunks((0, FULL, 1), (1, 5, 1)), FULL + 5),
    ],
)
def test_what_is_durable_is_what_the_last_writer_stored_without_a_hole(
    offset: int, stored: list[StoredChunk], expected: int
):
    assert durable(offset, 1, stored) == expected


def test_only_the_last_chunk_may_be_short():
    length = 2 * FULL + 5
    assert chunk_count(length) == 3
    assert [expected_size(number, length) for number in range(4)] == [FULL, FULL, 5, 0]
    assert chunk_count(0) == 0


BODY = [os.urandom(FULL) for _ in range(4)]


def sha256(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


@given(st.permutations(range(4)))
def test_chunks_of_one_writer_may_come_in_any_order(order: list[int]):
    digest = ResumedDigest()
    digest.begin(1, 0)
    for number in order:
        digest.take(1, number, BODY[number])
    assert (digest.chunks, digest.hexdigest()) == (4, sha256(*BODY))


def test_a_digest_goes_on_with_the_next_writer_where_that_one_begins():
    digest = ResumedDigest()
    digest.begin(1, 0)
    digest.take(1, 0, BODY[0])
    digest.take(1, 2, BODY[3])  # ahead, and never joined on: the next writer writes it anew
    digest.begin(2, FULL + 7)
    digest.take(1, 1, BODY[3])  # late: nobody counts on what is taken in of a writer that is shut out
    digest.begin(3, FULL)
    for number in (1, 2):
        digest.take(3, number, BODY[number])
    for number in range(digest.chunks, 4):
        digest.add(BODY[number])
    assert digest.hexdigest() == sha256(*BODY)


def test_what_is_written_anew_or_was_written_by_strangers_is_read_again():
    digest = ResumedDigest()
    digest.begin(1, 0)
    digest.take(1, 0, BODY[0])
    digest.begin(2, 5)
    assert digest.chunks == 0
    digest.take(2, 0, BODY[1])
    digest.begin(4, FULL)  # 3 was another process's
    assert digest.chunks == 0
    digest.take(9, 0, BODY[2])
    assert (digest.chunks, digest.hexdigest()) == (1, sha256(BODY[2]))


def test_a_short_chunk_waits_for_the_end():
    digest = ResumedDigest()
    digest.begin(1, 0)
    digest.take(1, 0, b"short")
    assert digest.chunks == 0
