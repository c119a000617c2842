"""A process that has imported a service, and forks it as often as it is asked to.

Importing is nearly all of a service's start: a second of CPU. Forked from its seed, a service that died is there again
in moments, and the memory of what was imported is shared. Linux only: what is forked becomes a child of the supervisor,
which is the subreaper, and not of the seed.

``python -m infra.local.seed MODULE`` reads requests from standard input, a line of JSON each, and answers with process
ids; it ends with its input.
"""

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from infra.local.processes import ROOT

#: For an answer: the first one waits for the imports.
ANSWER_S = 60.0
_LOOK_S = 0.02


class SeedError(OSError):
    """The seed has ended, or does not answer."""


class Forked:
    """A process that a seed has forked, used as a `subprocess.Popen` is."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # somebody else has collected the code
                self.returncode = 0
            else:
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once it has ended.

        Raises:
            subprocess.TimeoutExpired: *timeout* seconds were not enough.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if limit is not None and time.monotonic() > limit:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
            time.sleep(_LOOK_S)
        return code

    def send_signal(self, sig: int) -> None:
        """Send a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Seed:
    """The seed of one module, as its owner sees it."""

    def __init__(self, module: str, env: Mapping[str, str]) -> None:
        """Start it and do not wait for it. *env* is for what this process's own environment leaves open."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "infra.local.seed", module],
            cwd=ROOT,
            env={**env, **os.environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def fork(self, env: Mapping[str, str], log: Path) -> Forked:
        """Start the service with *env* added to its environment; its output is appended to *log*.

        Raises:
            SeedError: start it in another way.
        """
        request = json.dumps({"env": dict(env), "log": str(log)}) + "\n"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(request.encode())
            self._process.stdin.flush()
            there, _, _ = select.select([self._process.stdout], [], [], ANSWER_S)
            answer = self._process.stdout.readline() if there else b""
        except (OSError, ValueError) as problem:
            raise SeedError(f"a seed has ended: {problem}") from problem
        if not answer.strip().isdigit():
            self.close()
            raise SeedError("a seed does not answer")
        return Forked(int(answer))

    @property
    def pid(self) -> int:
        """Return the seed's own process id."""
        return self._process.pid

    def close(self) -> None:
        """End the seed; what it has forked runs on."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def serve(module: str) -> int:
    """Import *module* and fork it for every request; return when there are no more, or as the forked service ends."""
    main: Callable[[], int | None] = importlib.import_module(module).main
    gc.collect()
    gc.freeze()  # a collection in a forked process would write to, and so copy, what all of them share
    for line in iter(sys.stdin.readline, ""):
        pid = _fork()
        if pid == 0:
            request = json.loads(line)
            _settle(module, request["env"], request["log"])
            return main() or 0
        print(pid, flush=True)
    return 0


def _fork() -> int:
    """Fork a process that is no child of this one; return its id, and 0 in it."""
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        pid = os.fork()
        if pid:
            os.write(write, str(pid).encode())
            os._exit(0)
        os.close(read)
        os.close(write)
        return 0
    os.close(write)
    os.waitpid(middle, 0)
    pid = int(os.read(read, 32))
    os.close(read)
    return pid


def _settle(module: str, env: Mapping[str, str], log: str) -> None:
    """Become what a process of its own would be."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.close(out)
    os.close(nothing)
    os.environ.update(env)
    sys.argv = [module]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor ends it; a Ctrl+C is for the supervisor
    sys.exit(serve(sys.argv[1]))
