"""The short form of `make chaos`, and that a bug planted into a run turns it red."""

from collections.abc import Iterator

import pytest

from tests.chaos import __main__ as command
from tests.chaos.plants import PLANTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def short(capsys: pytest.CaptureFixture[str]) -> Iterator[list[str]]:
    yield ["--seed", "11", "--patience-s", "400"]
    print(capsys.readouterr().out)  # the report, when it fails


def test_nothing_is_lost_while_everything_is_killed(short: list[str]) -> None:
    # The pace is judged by `make chaos`: here other tests have the processors as well.
    assert command.main([*short, "--faults", "kill", "--jobs", "40", "--calm", "10", "--pace-least", "0"]) == 0


def test_every_planted_bug_turns_the_run_red(short: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*short, "--faults", "none", "--jobs", "25", "--calm", "1", "--plant", ",".join(PLANTS)]
    assert command.main([*arguments, "--clear"]) == 1
    report = capsys.readouterr().out
    for kind in PLANTS:
        assert f"    {kind}: " in report
