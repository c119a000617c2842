"""One process that starts the stack, starts again what dies, and stops it in order.

It is a process group of its own, holds a lock as long as it lives, and writes run.json whenever something changes.
"""

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil

from infra.local import programs
from infra.local.engine import engine
from infra.local.home import Home, Identity, address, identity, known_nodes, port
from infra.local.ports import LOOPBACK, claim, kept_port, write_whole
from infra.local.processes import ROOT, born_at, end, is_zombie
from infra.local.programs import Addresses, Program
from infra.local.seed import Forked, Seed, SeedError
from infra.local.servers import START_S, MongoServer, NatsServer, Server, ServerFailedError
from shared.permissions import accounts_config

LOG_BYTES_MAX = 20 * 1024 * 1024
FIRST_DELAY_S, SETTLED_S = 0.2, 10.0
#: An exit code of sysexits.h, EX_CONFIG: starting again would not help.
EXIT_STAY_AWAY = 78
LONGEST_DELAY_S = float(os.environ.get("WHERRY_RESTART_DELAY_MAX_S") or 5.0)
STOP_S = 15.0
#: How long one try of the set-up of streams may take.
SET_UP_S = 60.0
_PR_SET_CHILD_SUBREAPER = 36


class Stopped(BaseException):
    """SIGTERM came while the stack was starting."""


@dataclass
class Backoff:
    """How long to wait before starting something again: doubling, and from the start once it has settled."""

    delay_s: float = FIRST_DELAY_S

    def after(self, ran_s: float) -> float:
        """Return the wait in seconds after a run of *ran_s* seconds."""
        wait = FIRST_DELAY_S if ran_s >= SETTLED_S else self.delay_s
        self.delay_s = min(wait * 2, LONGEST_DELAY_S)
        return wait


@dataclass
class Child:
    """One process that should be there."""

    name: str
    spawn: Callable[[], subprocess.Popen[bytes] | Forked]
    process: subprocess.Popen[bytes] | Forked | None = None
    started: float = 0.0
    restarts: int = 0
    again_at: float | None = None
    is_over: bool = False
    backoff: Backoff = field(default_factory=Backoff)

    def start(self) -> None:
        """Start it now."""
        self.process, self.started, self.again_at = self.spawn(), time.monotonic(), None

    def look(self, now: float) -> bool:
        """Start it again when it is dead and due; return whether anything changed.

        What asks not to be started again (an agent whose identity another has taken) stays away: the two would evict
        each other for ever.
        """
        if self.process is None or self.is_over or self.process.poll() is None:
            return False
        if self.process.returncode == EXIT_STAY_AWAY:
            self.is_over = True
            _say(f"{self.name} ended with {EXIT_STAY_AWAY}: it is not started again; its log says why")
            return True
        if self.again_at is None:
            wait = self.backoff.after(now - self.started)
            self.again_at = now + wait
            _say(f"{self.name} ended with {self.process.returncode}; starting it again in {wait:g} s")
            return True
        if now >= self.again_at:
            self.restarts += 1
            self.start()
            return True
        return False


class Supervisor:
    """The stack of one home folder."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.who: Identity = identity(home)
        self.children: dict[str, Child] = {}
        self.state = "starting"
        self.problem = ""
        self.stopping = False
        self.nats: NatsServer | None = None
        self.mongo: MongoServer | None = None
        self.where: Addresses | None = None
        self.seeds: dict[str, Seed] = {}

    def run(self) -> int:
        """Run the stack until it is told to stop; return the exit code."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        _adopt_orphans()
        self._note()
        try:
            self._start()
            self.state = "running"
            self._note()
            self._watch()
        except Stopped:
            pass
        except (ServerFailedError, OSError, subprocess.SubprocessError) as failed:
            self.state, self.problem = "failed", str(failed)
            _say(self.problem)
            self._note()
        self._stop()
        return 1 if self.problem else 0

    def _on_signal(self, *_: object) -> None:
        self.stopping = True

    # --- start -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.where = where = self._servers()
        self._sow()
        self._add(programs.sinks(self.home, where))
        for server in (self.nats, self.mongo):
            if server:
                self.children[server.name] = Child(server.name, server.spawn)
                self.children[server.name].start()
        self._note()
        self._ready(self.nats)
        self._set_up(programs.bootstrap(self.who, where))
        self._ready(self.mongo)
        runtimes = "docker,process" if engine(5) else "process"
        for program in programs.services(self.home, self.who, where, runtimes, os.environ):
            self._add(program)
        self._note()

    def _sow(self) -> None:
        """Let the services be imported, beside the start of the servers."""
        if sys.platform == "linux" and os.environ.get("WHERRY_SEEDS", "1") != "0":
            self.seeds = {kind: Seed(f"services.{kind}.__main__", programs.FROM_THE_START) for kind in programs.KINDS}

    def _servers(self) -> Addresses:
        env, root, ports = os.environ, self.home.root, self.home.ports
        claim(port(env))  # the gateway listens last of all: nobody else is to be given its port
        if not env.get("WHERRY_NATS_URL"):
            accounts = accounts_config(self.who.nats, known_nodes())
            self.nats = NatsServer(root, accounts, host=env.get("WHERRY_NATS_HOST") or LOOPBACK)
        if not env.get("WHERRY_MONGO_URL"):
            cache, oplog = env.get("WHERRY_MONGO_CACHE_GB", "1"), env.get("WHERRY_MONGO_OPLOG_MB", "1024")
            self.mongo = MongoServer(root, cache_gb=float(cache), oplog_mb=int(oplog))
        return Addresses(
            nats=self.nats.url if self.nats else env["WHERRY_NATS_URL"],
            mongo=self.mongo.url if self.mongo else env["WHERRY_MONGO_URL"],
            http_port=port(env),
            webhook_port=kept_port(ports, "webhook"),
            smtp_port=None if env.get("WHERRY_SMTP_HOST") else kept_port(ports, "smtp"),
        )

    def _ready(self, server: Server | None, timeout_s: float = START_S) -> None:
        """Wait for a server without being deaf to SIGTERM meanwhile."""
        limit = time.monotonic() + timeout_s
        while server and not server.answers():
            if not server.running or time.monotonic() > limit:
                server.wait_ready(0)  # says which it is, with the end of the log
            self._pause(0.02)

    def _set_up(self, program: Program) -> None:
        """Run the set-up to its end; the broker may still be loading its streams, so more than once."""
        backoff = Backoff()
        for _ in range(6):
            process = self._spawn(program)
            try:
                if process.wait(SET_UP_S) == 0:
                    return
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                where = os.environ.get("WHERRY_NATS_URL") or (self.nats.url if self.nats else "")
                raise ServerFailedError(
                    f"NATS at {where} did not answer in {SET_UP_S:g} s; is WHERRY_NATS_URL right, if it is set? "
                    f"The end of {self.home.log(program.name)}:\n{self.home.tail(program.name, 3)}"
                ) from None
            self._pause(backoff.after(0))
        tail = self.home.tail(program.name)
        raise ServerFailedError(f"the set-up of streams failed; the end of {self.home.log(program.name)}:\n{tail}")

    def _add(self, program: Program) -> None:
        child = Child(program.name, lambda: self._spawn(program))
        self.children[program.name] = child
        child.start()

    def _spawn(self, program: Program) -> subprocess.Popen[bytes] | Forked:
        kind = programs.kind_of(program.name)
        if kind in self.seeds:
            try:
                with _appending(self.home.log(program.name)):
                    return self.seeds[kind].fork(program.env, self.home.log(program.name))
            except SeedError as problem:
                _say(f"{program.name} is started without a seed from now on: {problem}")
                del self.seeds[kind]
        with _appending(self.home.log(program.name)) as out:
            return subprocess.Popen(
                program.argv,
                cwd=ROOT,
                env={**os.environ, **program.env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    # --- run -------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while True:
            now = time.monotonic()
            changed = [child.look(now) for child in self.children.values()]
            if any(changed):
                self._note()
            self._bury()
            self._pause(0.1)

    def _pause(self, seconds: float) -> None:
        if self.stopping:
            raise Stopped
        time.sleep(seconds)
        if self.stopping:
            raise Stopped

    def _bury(self) -> None:
        """Collect the exit codes of adopted processes; those of our own children are theirs to collect."""
        ours = {child.process.pid for child in self.children.values() if child.process}
        ours |= {seed.pid for seed in self.seeds.values()}
        for process in psutil.Process().children():
            if process.pid not in ours and is_zombie(process):
                os.waitpid(process.pid, os.WNOHANG)

    def _note(self) -> None:
        """Write down what runs now."""
        pids = {name: c.process.pid for name, c in self.children.items() if c.process and c.process.poll() is None}
        pids["supervisor"] = os.getpid()
        record = {
            "state": self.state,
            "problem": self.problem,
            "stack_id": self.who.stack_id,
            "url": address(),
            "pids": pids,
            "born": {name: born for name, pid in pids.items() if (born := born_at(pid))},
            "restarts": {name: child.restarts for name, child in self.children.items()},
            "sinks": {"webhook_url": self.where.webhook_url} if self.where else {},
        }
        write_whole(self.home.run, json.dumps(record, indent=2) + "\n")

    # --- stop ------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        for stage in programs.STOP_ORDER:
            members = [child for name, child in self.children.items() if programs.kind_of(name) in stage]
            running = [child.process for child in members if child.process]
            end([process for process in running if process.poll() is None], STOP_S)
        for seed in self.seeds.values():
            seed.close()
        # What is left are programs of jobs, and whatever a killed child had started.
        end(psutil.Process().children(recursive=True), 2.0)
        if not self.problem:
            self.home.run.unlink(missing_ok=True)


def supervise(home: Home) -> int:
    """Run the stack in this process; return at once with 1 when another supervisor has it."""
    home.root.mkdir(parents=True, exist_ok=True)
    with (home.root / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another supervisor runs this stack")
            return 1
        return Supervisor(home).run()


def _adopt_orphans() -> None:
    """Become the parent of what our children leave behind, so that `down` finds all of it (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _appending(log: Path) -> IO[bytes]:
    """Open a log for appending; one that has grown large is put aside first."""
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".1.log"))
    return log.open("ab")


def _say(text: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%S"), text, flush=True)
