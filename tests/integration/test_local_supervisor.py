"""What the local stack does to real processes: starting again, ending, taking mail and webhooks."""

import json
import os
import signal
import smtplib
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from infra.local import control
from infra.local.home import Home
from infra.local.ports import free_port, is_free, write_whole
from infra.local.processes import ROOT, born_at, end, locked
from infra.local.supervisor import Backoff, Child

IGNORES_TERM = (
    "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
)


def started(program: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    return process


def until(condition: Callable[[], object], seconds: float = 90) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.02)


def test_a_process_that_dies_is_started_again_after_its_wait(tmp_path: Path):
    child = Child("x", lambda: subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
    child.start()
    assert child.process is not None
    first = child.process
    assert child.look(time.monotonic()) is False
    first.kill()
    first.wait()
    now = time.monotonic()
    assert child.look(now) is True  # seen
    assert child.look(now + 0.1) is False  # not yet
    assert child.look(now + 0.25) is True  # due
    assert child.process.pid != first.pid
    assert child.restarts == 1
    end([child.process], 5)


def test_a_process_that_asks_to_stay_away_is_not_started_again():
    child = Child("x", lambda: subprocess.Popen([sys.executable, "-c", "raise SystemExit(78)"]))
    child.start()
    assert child.process is not None
    child.process.wait()
    now = time.monotonic()
    assert child.look(now) is True  # seen, and said
    assert child.look(now + 60) is False
    assert child.restarts == 0


def test_the_wait_doubles_to_five_seconds_and_begins_anew_after_a_long_run():
    backoff = Backoff()
    assert [backoff.after(0.1) for _ in range(7)] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert [backoff.after(60), backoff.after(0)] == [0.2, 0.4]


def test_ending_is_by_force_where_asking_does_not_help():
    polite, stubborn = started("import time; print('up', flush=True); time.sleep(60)"), started(IGNORES_TERM)
    end([polite, stubborn], 10)  # which the polite one needs nothing of
    assert (polite.returncode, stubborn.returncode) == (-signal.SIGTERM, -signal.SIGKILL)


def test_what_a_killed_supervisor_left_is_ended_and_a_stranger_with_its_number_is_not(tmp_path: Path):
    home = Home(tmp_path)
    left, stranger = started(IGNORES_TERM), started(IGNORES_TERM)
    record = {"pids": {"nats": left.pid, "mongo": stranger.pid}, "born": {"nats": born_at(left.pid), "mongo": 1.0}}
    write_whole(home.run, json.dumps(record))
    killer = psutil.Process(left.pid)
    try:
        # The processes are this test's children, so somebody has to collect them.
        control.clear_leftovers(home, patience_s=0.5)
        assert not killer.is_running() or killer.status() == psutil.STATUS_ZOMBIE
        assert stranger.poll() is None
        assert not home.run.exists()
    finally:
        for process in (left, stranger):
            process.kill()
            process.wait()


def test_down_on_a_folder_where_nothing_runs_is_harmless(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    control.down(Home(tmp_path / "none"))
    assert "did not run" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_up_says_plainly_that_the_port_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        monkeypatch.setenv("WHERRY_PORT", str(other.getsockname()[1]))
        with pytest.raises(control.StackFailedError, match="in use"):
            control.up(Home(tmp_path))
    assert not locked(Home(tmp_path))


def test_a_stack_is_ready_once_its_own_receiver_takes_webhooks_and_no_other_program_on_its_port(
    sinks: tuple[int, int], tmp_path: Path
):
    home = Home(tmp_path / "stack")
    assert not control.takes_webhooks(home)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02}).start()
        try:
            for port, is_there in ((free_port(), False), (other.server_port, False), (sinks[1], True)):
                write_whole(home.run, json.dumps({"sinks": {"webhook_url": f"http://127.0.0.1:{port}/"}}))
                assert control.takes_webhooks(home) is is_there
        finally:
            other.shutdown()


def test_what_is_on_this_machine_is_not_asked_for_through_a_proxy(sinks: tuple[int, int], tmp_path: Path):
    home = Home(tmp_path / "stack")
    write_whole(home.run, json.dumps({"sinks": {"webhook_url": f"http://127.0.0.1:{sinks[1]}/"}}))
    env = {name: text for name, text in os.environ.items() if name.lower() not in ("no_proxy", "http_proxy")}
    ask = (
        "import pathlib, sys; from infra.local import control, home;"
        "print(control.takes_webhooks(home.Home(pathlib.Path(sys.argv[1]))))"
    )
    told = subprocess.check_output(
        [sys.executable, "-c", ask, str(home.root)], env=env | {"http_proxy": "http://127.0.0.1:1"}, text=True
    )
    assert told == "True\n"


@pytest.fixture
def sinks(tmp_path: Path) -> Iterator[tuple[int, int]]:
    smtp, http = free_port(), free_port()
    command = [sys.executable, "-m", "infra.local.sinks", str(tmp_path), str(smtp), str(http)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ)
    until(lambda: not is_free(smtp) and not is_free(http))
    yield smtp, http
    process.terminate()
    assert process.wait(90) == 0


def test_mail_and_webhooks_are_taken_where_the_name_of_the_machine_is_slow_to_be_had(tmp_path: Path):
    """A resolver that does not answer keeps whoever asks for longer than any of the waits here."""
    smtp, http = free_port(), free_port()
    slow = "import runpy, socket, time; socket.getfqdn = lambda *_: time.sleep(600)"
    program = f"{slow}; runpy.run_module('infra.local.sinks', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", program, str(tmp_path), str(smtp), str(http)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ)
    try:
        until(lambda: not is_free(http))
        with smtplib.SMTP("127.0.0.1", smtp, local_hostname="test", timeout=60) as client:
            client.sendmail("a@x.org", ["b@x.org"], "Subject: It ended\r\n\r\nhello\r\n")
        assert "It ended" in next(tmp_path.glob("*.eml")).read_text()
        process.terminate()
        assert process.wait(90) == 0
    finally:
        process.kill()
        process.wait()


def test_mail_and_webhooks_are_kept_as_they_came(sinks: tuple[int, int], tmp_path: Path):
    smtp, http = sinks
    with smtplib.SMTP("127.0.0.1", smtp) as client:
        client.sendmail("a@x.org", ["b@x.org"], "Subject: It ended\r\nTo: b@x.org\r\n\r\nhello\r\n")
    request = urllib.request.Request(
        f"http://127.0.0.1:{http}/hook", data='{"a": "ü"}'.encode(), headers={"Webhook-Id": "d1"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200
    assert "Subject: It ended" in next(tmp_path.glob("*.eml")).read_text()
    kept = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert (kept["path"], kept["body"]) == ("/hook", '{"a": "ü"}')
    assert {name.lower(): value for name, value in kept["headers"].items()}["webhook-id"] == "d1"
