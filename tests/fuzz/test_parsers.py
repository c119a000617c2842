"""A short, always equal piece of fuzzing of the other parsers; and what it has found."""

from datetime import UTC, datetime

import pytest

from services.gateway.core.ranges import span
from services.node_agent.core.output import OutputParser
from tests.fuzz.parsers import TARGETS
from tests.fuzz.run import fuzz_parser


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_breaks_the_parser(name: str) -> None:
    result = fuzz_parser(name, 7, 2000)
    assert result.found is None, result.found
    assert len(result.said) > 2


def test_a_range_of_thousands_of_digits_is_nonsense_and_no_failure() -> None:
    assert span(f"bytes=0-{'9' * 5000}", 10) is None
    assert span(f"bytes={'9' * 5000}-", 10) is None


@pytest.mark.parametrize(
    "line",
    [
        "1/" + "9" * 5000 + " [==>..]",
        "::progress " + "9" * 8000,
        "::progress " + "9" * 8000 + "x",
        "::metric a=1 step=1e300",
    ],
    ids=["a bar", "progress", "progress that is none", "a step"],
)
def test_numbers_of_thousands_of_digits_neither_end_the_reading_of_a_program_nor_hold_it_up(line: str) -> None:
    parsed = OutputParser().feed("o", datetime(2026, 1, 1, tzinfo=UTC), f"{line}\n".encode() * 20)
    assert len(parsed.lines) == 20
    assert parsed.progress is None
    assert all(point.step is None for point in parsed.metrics)
