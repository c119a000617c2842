from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.core.tail import (
    Gap,
    Tail,
    event_id,
    parse_event_id,
    wanted,
)
from shared.events import LogLine, LostLines

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def lines(*numbers: int, s: str = "o") -> list[LogLine]:
    return [LogLine(n=n, t=NOW, s=s, x=str(n)) for n in numbers]


def told(pieces: list) -> list[int | tuple[int, int]]:
    return [(piece.first, piece.last) if isinstance(piece, Gap) else piece.n for piece in pieces]


def test_what_was_given_out_is_not_given_again() -> None:
    tail = Tail(1)
    assert told(tail.take(lines(1, 2, 3))) == [1, 2, 3]
    assert told(tail.take(lines(2, 3, 4))) == [4]
    assert told(tail.take(lines(1, 4))) == []


def test_missing_numbers_are_a_gap_before_the_line_that_shows_it() -> None:
    tail = Tail(1)
    assert told(tail.take(lines(3, 4, 8))) == [(1, 2), 3, 4, (5, 7), 8]
    assert told(tail.take(lines(9))) == [9]


def test_a_reader_who_comes_in_the_middle_misses_nothing_before() -> None:
    tail = Tail(1, None)
    assert not tail.missing_before(lines(70))
    assert told(tail.take(lines(70, 71, 73))) == [70, 71, (72, 72), 73]


def test_a_hole_can_be_filled_from_the_store_before_it_counts() -> None:
    tail = Tail(1)
    tail.take(lines(1, 2))
    live = lines(6, 7)
    assert tail.missing_before(live)
    assert told(tail.take_joined(lines(3, 4, 6))) == [3, 4]
    assert tail.missing_before(live)
    assert told(tail.take_joined(lines(5))) == [5]
    assert not tail.missing_before(live)
    assert told(tail.take(live)) == [6, 7]


@given(st.lists(st.lists(st.integers(1, 30), max_size=8), max_size=10))
def test_whatever_arrives_every_number_is_told_at_most_once_and_in_order(batches: list[list[int]]) -> None:
    tail = Tail(1)
    seen: list[int] = []
    for batch in batches:
        for piece in tail.take(lines(*sorted(set(batch)))):
            seen += range(piece.first, piece.last + 1) if isinstance(piece, Gap) else [piece.n]
    assert seen == list(range(1, len(seen) + 1))


def test_an_event_id_says_where_to_go_on() -> None:
    assert parse_event_id(event_id(2, 17)) == (2, 17)
    for nonsense in (None, "", "17", "a.b", "1.", ".1", "1.2.3", "-1.2", "9" * 30 + ".1"):
        assert parse_event_id(nonsense) is None


def test_a_reader_may_want_one_stream() -> None:
    (line,) = lines(1, s="e")
    assert wanted(line, None)
    assert wanted(line, "e")
    assert not wanted(line, "o")


def test_lines_that_are_lost_for_good_are_not_looked_for() -> None:
    tail = Tail(1, 2)
    assert tail.missing_before(lines(9))
    assert tail.missing_before(lines(9), [LostLines(first=4, last=8)])
    assert not tail.missing_before(lines(9), [LostLines(first=3, last=8)])
    assert not tail.missing_before(lines(9), [LostLines(first=6, last=8), LostLines(first=1, last=5)])
    assert not tail.missing_before(lines(3), [])


def test_in_a_choice_of_lines_a_missing_number_is_no_gap() -> None:
    tail = Tail(1, None)
    assert told(tail.take(lines(5, 9), are_all=False)) == [5, 9]
    assert told(tail.take(lines(12))) == [(10, 11), 12]
    assert Gap(10, 11).count == 2
