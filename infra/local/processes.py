"""Looking at processes and ending them, for whoever is not their parent."""

import fcntl
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import psutil

from infra.local.home import Home

#: The repository: where modules are found and run.
ROOT = Path(__file__).resolve().parents[2]


class Process(Protocol):
    """What can be ended: one of `subprocess`, `psutil` or a seed."""

    def send_signal(self, sig: int, /) -> None:
        """Send a signal."""
        ...

    def wait(self, timeout: float | None = None) -> int | None:
        """Return once it has ended; raise TimeoutExpired after *timeout* seconds."""
        ...


def end(processes: Iterable[Process], patience_s: float) -> None:
    """SIGTERM to all, and SIGKILL to those that are still there after *patience_s* seconds."""
    waiting = [process for process in processes if _signal(process, signal.SIGTERM)]
    limit = time.monotonic() + patience_s
    for process in waiting:
        try:
            process.wait(max(limit - time.monotonic(), 0.01))
        except (subprocess.TimeoutExpired, psutil.TimeoutExpired):
            _signal(process, signal.SIGKILL)
            process.wait(10)


def born_at(pid: int) -> float | None:
    """Return when process *pid* was started, which tells it from a later one of the same number; None: it is gone."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def is_zombie(process: psutil.Process) -> bool:
    """Whether the process has ended and nobody has collected its exit code."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def locked(home: Home) -> bool:
    """Whether a supervisor runs this stack."""
    if not home.root.exists():
        return False
    with (home.root / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _signal(process: Process, number: int) -> bool:
    try:
        process.send_signal(number)
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False
    return True
