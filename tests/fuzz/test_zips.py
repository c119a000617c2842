"""A short, always equal piece of fuzzing; and that it finds bugs that are planted in the guard."""

import random
from pathlib import Path

import pytest

from tests.fuzz.mutants import MUTANTS, guard
from tests.fuzz.run import fuzz_zips
from tests.fuzz.zips import odd

EXECUTIONS = 20_000


def test_thousands_of_odd_zips_are_refused_with_a_reason_or_are_harmless(tmp_path: Path) -> None:
    result = fuzz_zips(7, EXECUTIONS, tmp_path)
    assert result.found is None, (result.found[1], result.found[0].hex())
    assert result.executions == EXECUTIONS
    assert result.unpacked >= EXECUTIONS / 200
    assert result.said["accepted"] > EXECUTIONS / 50, "hardly one gets far"
    assert len(result.said) > 25, "whole sorts of them are never made"


def test_the_same_seed_gives_the_same_zips() -> None:
    first, second = random.Random(3), random.Random(3)
    assert [odd(first, []) for _ in range(50)] == [odd(second, []) for _ in range(50)]


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_that_is_planted_in_the_guard_is_found(name: str, tmp_path: Path) -> None:
    assert fuzz_zips(7, EXECUTIONS, tmp_path, guard=guard(name)).found is not None
