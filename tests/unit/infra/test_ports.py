"""A port that somebody was given is nobody else's, also before anything listens on it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from infra.local import ports

ROOT = Path(__file__).resolve().parents[3]
OTHER = """
import sys
from pathlib import Path
from infra.local import ports

ports._CLAIMS, ports._PORTS, ports.is_free = Path(sys.argv[1]), (1, 4), lambda _: True
print(ports.free_port(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Three ports are all that there are, and nobody listens on them."""
    monkeypatch.setattr(ports, "_CLAIMS", tmp_path / "claims")
    monkeypatch.setattr(ports, "_PORTS", (1, 4))
    monkeypatch.setattr(ports, "_ours", set())
    monkeypatch.setattr(ports, "is_free", lambda _: True)
    monkeypatch.setattr(ports, "_claims", cache(ports._claims.__wrapped__))
    yield tmp_path / "claims"
    os.close(ports._claims())


def test_nobody_is_given_what_another_process_was_given_and_still_may_use(claims: Path) -> None:
    command = [sys.executable, "-c", OTHER, str(claims)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        theirs = int(other.stdout.readline())
        assert {ports.free_port(), ports.free_port()} == {1, 2, 3} - {theirs}
        with pytest.raises(OSError, match="no port"):
            ports.free_port()
        other.communicate()
    assert ports.free_port() == theirs
