"""When retention runs again."""

from datetime import UTC, datetime, timedelta

import pytest

from services.storage.core.retention import wait_s

NOW = datetime(2026, 1, 2, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.mark.parametrize(
    ("ago", "waits"), [(None, 600), (timedelta(days=3), 600), (DAY, 600), (23 * HOUR, 3600), (timedelta(), 86400)]
)
def test_a_run_comes_a_day_after_the_last_one_however_often_storage_has_started(
    ago: timedelta | None, waits: float
) -> None:
    assert wait_s(NOW - ago if ago is not None else None, DAY, NOW) == waits


def test_an_interval_shorter_than_the_rest_after_a_start_is_kept() -> None:
    assert wait_s(None, timedelta(seconds=2), NOW) == 2
