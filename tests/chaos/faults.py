"""Faults at random moments, the same for the same seed, on the processes of a local stack."""

import asyncio
import contextlib
import json
import math
import os
import random
import signal
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shared.clock import utc_now
from tests.chaos.checks import Fault

SERVICES = ("gateway", "scheduler", "storage", "notifier", "node_agent")
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Blow:
    """What happens to one process again and again.

    Attributes:
        target: its name in run.json.
        mean_s: the mean of the seconds between two blows; they come as they like (exponentially).
        pause_s: from and to how many seconds it is stopped; None: it is killed.
    """

    target: str
    mean_s: float
    pause_s: tuple[float, float] | None = None


def blows(kind: str, agents: list[str], *, service_s: float, server_s: float, pause_s: float) -> list[Blow]:
    """Return what a kind of chaos does.

    Args:
        kind: kill, stop, mongo or none.
        agents: the agents' names in run.json.
        service_s: the mean time between two kills of a service.
        server_s: the same for NATS (kill, stop) or mongod (mongo).
        pause_s: the longest stop; the shortest is 1 s.

    Raises:
        ValueError: there is no such kind.
    """
    services = [*SERVICES[:-1], *agents]
    stop = (1.0, pause_s)
    match kind:
        case "kill":
            return [*(Blow(name, service_s) for name in services), Blow("nats", server_s)]
        case "stop":
            # As much time awake as asleep, or nothing would ever come to its end.
            awake = service_s + pause_s / math.log(max(pause_s, 1.5))
            return [*(Blow(name, awake, stop) for name in services), Blow("nats", awake + server_s, stop)]
        case "mongo":
            return [Blow("mongo", server_s), Blow("mongo", server_s, (1.0, min(pause_s, 30.0)))]
        case "none":
            return []
        case _:
            raise ValueError(f"no faults of kind {kind!r}")


def moments(seed: int, blow: Blow) -> Iterator[tuple[float, float]]:
    """Yield (seconds to wait, seconds to stop it) for ever; 0 seconds is a kill."""
    chance = random.Random(f"{seed}/{blow}")
    while True:
        # Short stops are as likely in each doubling as long ones.
        stop = math.exp(chance.uniform(*map(math.log, blow.pause_s))) if blow.pause_s else 0.0
        yield chance.expovariate(1 / blow.mean_s), stop


@dataclass
class Injector:
    """Strikes the processes that a stack's run.json names."""

    run_file: Path
    faults: list[Fault] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def striking(self, seed: int, planned: list[Blow]) -> AsyncGenerator[None]:
        """Strike inside the block; when it is left, nothing is stopped any more."""
        tasks = [asyncio.create_task(self._strike(seed, blow)) for blow in planned]
        try:
            yield
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _strike(self, seed: int, blow: Blow) -> None:
        due = time.monotonic()
        for wait_s, stop_s in moments(seed, blow):
            due += wait_s
            await asyncio.sleep(due - time.monotonic())
            pid = await self._pid(blow.target)
            if stop_s:
                await self._stop(blow.target, pid, stop_s)
                due = time.monotonic()
            else:
                self._kill(blow.target, pid)

    async def _pid(self, target: str) -> int:
        """Return its process id, once it has one that lives."""
        while True:
            pid = json.loads(self.run_file.read_text())["pids"].get(target)
            if pid and _lives(pid):
                return int(pid)
            await asyncio.sleep(_LOOK_S)

    def _kill(self, target: str, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.faults.append(Fault(utc_now().timestamp(), target, "kill"))

    async def _stop(self, target: str, pid: int, stop_s: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            began = utc_now().timestamp()
            try:
                await asyncio.sleep(stop_s)
            finally:
                os.kill(pid, signal.SIGCONT)
                self.faults.append(Fault(began, target, "stop", utc_now().timestamp() - began))


def _lives(pid: int) -> bool:
    """Whether it runs: one that is dead and not yet buried (Z) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
