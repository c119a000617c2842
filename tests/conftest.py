"""What tests of several kinds share: real servers that start in a fraction of a second."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadFileScheduling

from infra.local.servers import NatsServer

# How long an example takes says nothing where several processes share two cores.
settings.register_profile("wherry", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("wherry")


#: What takes long comes first, so that at the end nobody waits for it: the files of the stack that end-to-end tests
#: share, what kills that stack's services (on another where another process has it), and what a core computes for
#: minutes while those wait.
_FIRST = (
    "tests/e2e",
    "tests/e2e/test_kill_any_service.py",
    "tests/model/test_model.py",
    "tests/model/",
    "tests/simulation/",
    "tests/e2e/test_several_engines.py",
    "tests/chaos/",
)
#: Files of end-to-end tests that need not be where the shared stack is.
_APART = ("test_kill_any_service.py", "test_several_engines.py", "test_local_stack.py")


def _together(nodeid: str) -> str:
    """Return what a test must be in one process with: its file, whose servers it shares, or the stack's files."""
    file = nodeid.split("::", 1)[0]
    return "tests/e2e" if file.startswith("tests/e2e/") and not file.endswith(_APART) else file


def _turn(nodeid: str) -> int:
    """Return when a test has its turn among the others."""
    together = _together(nodeid)
    fits = (one for one, first in enumerate(_FIRST) if together == first or (first[-1] == "/" and first in together))
    return next(fits, len(_FIRST))


class FilesAndOneStack(LoadFileScheduling):
    """Gives a process a file at a time, because files have servers of their own; all that share the stack are one."""

    def _split_scope(self, nodeid: str) -> str:
        return _together(nodeid)


@pytest.hookimpl(optionalhook=True)  # unknown where xdist is turned off
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    return FilesAndOneStack(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _turn(item.nodeid))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what failed: of a run that is cut off, pytest's own summary never comes."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash else str(report.longrepr)
        print(f"\nFAILED {report.nodeid} ({report.when}, {report.duration:.0f} s): {why[:3000]}", flush=True)


@contextmanager
def passing_folder(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """Give a folder for servers that is gone after the block: pytest keeps its own, and those have gigabytes."""
    folder = factory.mktemp(name)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for what a file's tests share, gone after them."""
    with passing_folder(tmp_path_factory, "shared") as folder:
        yield folder


@dataclass
class RunningNats:
    """A NATS server with JetStream. One that was there before (`process` None) can be neither stopped nor killed."""

    url: str
    user: str = ""
    password: str = ""
    process: NatsServer | None = None

    def stop(self) -> None:
        """End it in order; `start` brings it back on the same port and store."""
        self._own().stop()

    def start(self) -> None:
        self._own().start()

    def kill(self) -> None:
        """End it as a crash would."""
        self._own().kill()

    def pause(self) -> None:
        """Let it hear everything and answer nothing, until `resume`."""
        os.kill(self._pid(), signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid(), signal.SIGCONT)

    def _pid(self) -> int:
        pid = self._own().pid
        assert pid is not None, "the server does not run"
        return pid

    def _own(self) -> NatsServer:
        if self.process is None:
            pytest.skip("the server of WHERRY_TEST_NATS_URL is not ours to stop")
        return self.process


@pytest.fixture
def start_nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., RunningNats]]:
    """Start a NATS server of one's own: ``start_nats(accounts="…configuration…")``. It ends with the test."""
    started: list[NatsServer] = []

    def start(accounts: str | None = None, home: Path | None = None) -> RunningNats:
        server = NatsServer(home or folders.enter_context(passing_folder(tmp_path_factory, "nats")), accounts)
        started.append(server)
        server.start()
        return RunningNats(server.url, process=server)

    with ExitStack() as folders:
        yield start
        for server in started:
            if server.running and server.process:
                os.kill(server.process.pid, signal.SIGCONT)  # one that was left paused cannot end
            server.stop()


@pytest.fixture
def nats_server(start_nats: Callable[..., RunningNats]) -> RunningNats:
    """A fresh NATS server without users; the one of WHERRY_TEST_NATS_URL where that is set."""
    if url := os.environ.get("WHERRY_TEST_NATS_URL"):
        return RunningNats(url)
    return start_nats()
