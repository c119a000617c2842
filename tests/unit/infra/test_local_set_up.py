"""What the supervisor says when the servers that it was given are not there."""

import sys
from pathlib import Path

import pytest

from infra.local import supervisor
from infra.local.home import Home
from infra.local.programs import Program
from infra.local.servers import ServerFailedError


@pytest.fixture
def watcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> supervisor.Supervisor:
    for name in ("WHERRY_NATS_URL", "WHERRY_MONGO_URL", "WHERRY_SMTP_HOST"):
        monkeypatch.delenv(name, raising=False)
    return supervisor.Supervisor(Home(tmp_path / "wherry"))


def test_a_nats_server_that_does_not_answer_is_named(watcher: supervisor.Supervisor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor, "SET_UP_S", 0.3)
    monkeypatch.setenv("WHERRY_NATS_URL", "nats://127.0.0.1:9")
    sleeps = Program("bootstrap", (sys.executable, "-c", "import time; time.sleep(60)"), {})
    with pytest.raises(ServerFailedError, match=r"nats://127\.0\.0\.1:9") as failed:
        watcher._set_up(sleeps)
    assert "WHERRY_NATS_URL" in str(failed.value)


def test_a_url_that_is_set_to_nothing_is_not_set(watcher: supervisor.Supervisor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHERRY_NATS_URL", "")
    monkeypatch.setenv("WHERRY_MONGO_URL", "")
    where = watcher._servers()
    assert where.nats.startswith("nats://127.0.0.1:")
    assert where.mongo.startswith("mongodb://")
