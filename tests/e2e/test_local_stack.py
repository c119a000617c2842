"""`make up` and `make down` themselves: what a crash leaves, what a stop leaves, what a second start finds."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.stack import ROOT, Stack, until

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
def own_stack() -> Iterator[Stack]:
    """A stack that a test may break: plain processes only."""
    home = Path(tempfile.mkdtemp(prefix="wherry-stack-"))
    stack = Stack.start(home, runtime="process", image=None, env={"WHERRY_RUNTIMES": "process"})
    yield stack
    stack.stop()
    left = processes_of(home)
    shutil.rmtree(home, ignore_errors=True)
    assert left == []


def processes_of(home: Path) -> list[str]:
    """Every process that has to do with *home*, by its command line, folder or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            about = [*process.cmdline(), process.cwd(), *process.environ().values()]
            if process.pid != os.getpid() and any(str(home) in text for text in about):
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def command(stack: Stack, name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.local", name],
        cwd=ROOT,
        env=stack.env,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_stack_comes_back_with_its_data_after_its_supervisor_was_killed_and_leaves_nothing(own_stack: Stack):
    done = own_stack.submit(own_stack.spec("echo kept"))
    own_stack.wait_state(done, "succeeded")
    going = own_stack.submit(own_stack.spec("sleep 300"))
    own_stack.wait_state(going, "running")

    again = command(own_stack, "up")
    assert again.returncode == 0
    assert "runs already" in again.stdout

    os.kill(own_stack.pid("supervisor"), signal.SIGKILL)
    until(lambda: command(own_stack, "status").returncode == 3, "a status that tells of the crash")

    back = command(own_stack, "up")
    assert back.returncode == 0, back.stderr
    assert "ending what an earlier stack left" in back.stdout
    assert own_stack.job(done)["state"] == "succeeded"
    assert own_stack.output(done, "_stdout.txt") == b"kept\n"
    assert command(own_stack, "status").returncode == 0
    # The fixture stops it while `going` is under way, and looks for what is left.
