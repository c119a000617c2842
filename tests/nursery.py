"""Services that tests start again and again are forked from a process that has imported them.

Importing is nearly all of a service's start: more than a second of a core, hundreds of times. What is forked is in all
else a process of its own, as below the local stack's supervisor (infra/local/seed.py); here the process that forks is
its parent and tells of its end, so that the test's own process need not adopt orphans.

    agent = await asyncio.to_thread(start, "services.node_agent", env, log)
    agent.send_signal(signal.SIGTERM)
    assert await agent.ended() == 0

``python -m tests.nursery MODULE`` reads requests from standard input, a line of JSON each, answers with the process id,
and tells each end; it goes with its input.
"""

import asyncio
import atexit
import contextlib
import gc
import importlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_ANSWER_S = 120.0  # the first answer waits for the imports
_LOOK_S = 0.01


class Nursling:
    """A forked service, used as a `subprocess.Popen` is; `ended` is its `wait` for coroutines."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._over = threading.Event()

    def over(self, code: int) -> None:
        """Note that it has ended with *code*, negative for a signal."""
        self.returncode = code
        self._over.set()

    def poll(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended.

        Raises:
            subprocess.TimeoutExpired: *timeout* seconds were not enough.
        """
        if not self._over.wait(timeout):
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    async def ended(self) -> int:
        """Return the exit code once it has ended."""
        while self.returncode is None:
            await asyncio.sleep(_LOOK_S)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it has not ended."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class _Nursery:
    """The process that forks one module, as tests see it."""

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.nursery", module], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._started: queue.Queue[Nursling] = queue.Queue()
        self._asking = threading.Lock()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        atexit.register(self._close)

    def fork(self, env: Mapping[str, str], log: Path) -> Nursling:
        assert self._process.stdin
        with self._asking:
            self._process.stdin.write((json.dumps({"env": dict(env), "log": str(log)}) + "\n").encode())
            self._process.stdin.flush()
            return self._started.get(timeout=_ANSWER_S)

    def _listen(self) -> None:
        assert self._process.stdout
        born: dict[int, Nursling] = {}
        for line in self._process.stdout:
            told: dict[str, int] = json.loads(line)
            if "started" in told:
                born[told["started"]] = Nursling(told["started"])
                self._started.put(born[told["started"]])
            else:
                born.pop(told["ended"]).over(told["code"])

    def _close(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._listener.join()
        self._process.stdout.close()


_nurseries: dict[str, _Nursery] = {}


def start(module: str, env: Mapping[str, str], log: Path) -> Nursling:
    """Start ``python -m module`` with exactly *env*; what it prints is appended to *log*."""
    log.touch()
    if module not in _nurseries:
        _nurseries[module] = _Nursery(module)
    return _nurseries[module].fork(env, log)


# --- the process that forks ------------------------------------------------------------------------------------------


def serve(module: str) -> int:
    """Import *module* and fork it for every request; return when there are no more, or as the forked service ends."""
    main: Callable[[], int | None] = importlib.import_module(f"{module}.__main__").main
    gc.collect()
    gc.freeze()  # a collection in a forked process would write to, and so copy, what all of them share
    wakes, wake = os.pipe()
    for end in (wakes, wake):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, _notice)
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([sys.stdin, wakes], [], [])
        if wakes in ready:
            os.read(wakes, 4096)
            _tell_ends()
        if sys.stdin in ready:
            line = sys.stdin.readline()  # one at a time: each is answered before the next is sent
            if not line:
                return 0
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                os.close(wakes)
                os.close(wake)
                _settle(module, json.loads(line))
                return main() or 0
            _tell(started=pid)


def _notice(*_: object) -> None:
    """Do nothing: that there is a handler is what writes to the pipe."""


def _tell_ends() -> None:
    with contextlib.suppress(ChildProcessError):  # there is none left
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            _tell(ended=found[0], code=os.waitstatus_to_exitcode(found[1]))


def _tell(**what: int) -> None:
    print(json.dumps(what), flush=True)


def _settle(module: str, request: Mapping[str, Any]) -> None:
    """Become what a process of its own would be."""
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.close(out)
    os.close(nothing)
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [module]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl+C is for pytest
    sys.exit(serve(sys.argv[1]))
