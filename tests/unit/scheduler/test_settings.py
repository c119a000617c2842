"""What the scheduler refuses to be started with."""

import pytest

from services.scheduler.settings import NOBODY, SchedulerSettings
from shared.settings import read_settings


def test_a_scheduler_is_not_called_what_a_free_lease_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERRY_SCHEDULER_ID", NOBODY)
    with pytest.raises(SystemExit, match=r"WHERRY_SCHEDULER_ID: .*'free' is what the lease says when nobody leads"):
        read_settings(SchedulerSettings)
    monkeypatch.setenv("WHERRY_SCHEDULER_ID", "freedom")
    assert read_settings(SchedulerSettings).scheduler_id == "freedom"
