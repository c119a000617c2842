from datetime import UTC, datetime

import pytest
import typer

from client.wherry import models, protocol
from client.wherry.cli.console import now
from client.wherry.cli.main import _point  # pyright: ignore[reportPrivateUsage]
from client.wherry.cli.series import sparkline, table


def test_a_sparkline_shows_the_run_of_a_series() -> None:
    assert sparkline([]) == ""
    assert sparkline([5.0, 5.0]) == "▄▄"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(range(1000))) == 32
    assert sparkline([*[0] * 500, *[1] * 500], 4) == "▁▁██"


def test_memory_is_shown_as_a_size_and_all_else_as_a_number() -> None:
    found = models.Metrics(
        series=(
            models.SeriesSummary(name="loss", count=2, min=0.12345, max=3, last=3),
            models.SeriesSummary(name="system.memory", count=1, min=2**20, max=2**20, last=2**20),
        ),
        points=(models.Metric(name="loss", value=1.0), models.Metric(name="loss", value=None)),
    )
    shown = table(found)
    cells = [list(column.cells) for column in shown.columns]
    assert cells[2][0] in {"0.1234", "0.1235"}
    assert "M" in str(cells[2][1])
    assert str(cells[5][0]) == "▄"


def test_a_log_can_begin_at_a_line_a_time_or_a_while_ago() -> None:
    assert _point(None) is None
    assert _point("42") == 42
    assert _point("2026-01-31T12:00:00+00:00") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    ago = _point("10m")
    assert isinstance(ago, datetime)
    assert 590 < (now() - ago).total_seconds() < 700
    with pytest.raises(typer.BadParameter):
        _point("yesterday")


def test_what_is_chosen_of_a_log_travels_as_the_server_takes_it() -> None:
    choice = protocol.LogChoice("stderr", 5, datetime(2026, 1, 31, 12, tzinfo=UTC), 2)
    assert choice.query() == {"stream": "stderr", "tail": "5", "since": "2026-01-31T12:00:00+00:00", "attempt": "2"}
    assert protocol.LogChoice(since=7).query() == {"since": "7"}
    assert protocol.follow("j1", protocol.LogChoice(), "").query == {"follow": "true"}
