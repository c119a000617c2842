"""Runs one kind of fuzzing for a number of executions, from a seed: the same seed gives the same inputs."""

import asyncio
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from shared import zipguard
from tests.fuzz import oracle, parsers, zips

#: One in so many zips is unpacked to a disk as well.
UNPACKED_ONE_IN = 200
POOL_MAX = 1000


@dataclass
class Result:
    """How a run went. `said`: how often the program said what. `found`: the first input that broke it, and how."""

    executions: int = 0
    seconds: float = 0.0
    said: Counter[str] = field(default_factory=Counter)
    unpacked: int = 0
    found: tuple[bytes, str] | None = None


def fuzz_zips(
    seed: int,
    executions: int,
    folder: Path,
    tell: Callable[[int], None] = lambda _: None,
    guard: ModuleType = zipguard,
) -> Result:
    """Let the guard judge *executions* odd zips, and unpack some below *folder*; stop at the first that breaks."""
    chance, result, pool = random.Random(seed), Result(), []
    began = time.monotonic()
    for number in range(executions):
        body = zips.odd(chance, pool)
        try:
            said = oracle.judge(body, guard)
            if number % UNPACKED_ONE_IN == 0 or (said == "accepted" and chance.random() < 0.01):
                oracle.unpack(body, folder / "root")
                result.unpacked += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is found
            result.found = (body, f"{type(error).__name__}: {error}")
            break
        finally:
            result.executions += 1
        result.said[said] += 1
        # What gets far, or is refused for a rare reason, is worth changing further.
        if result.said[said] < 20 or (said == "accepted" and chance.random() < 0.05):
            pool.append(body)
            if len(pool) > POOL_MAX:
                del pool[chance.randrange(len(pool))]
        if number % 10_000 == 9_999:
            tell(10_000)
    result.seconds = time.monotonic() - began
    return result


def fuzz_parser(name: str, seed: int, executions: int) -> Result:
    """Give odd inputs to the parser *name* of `parsers.TARGETS`; stop at the first that breaks it."""
    chance, result, target, loop = random.Random(seed), Result(), parsers.TARGETS[name], asyncio.new_event_loop()
    began = time.monotonic()
    for _ in range(executions):
        result.executions += 1
        once = time.process_time()
        try:
            result.said[target(chance, loop)] += 1
            oracle.expect(time.process_time() - once < oracle.SECONDS_MAX, "too slow")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is found
            result.found = (f"{name}, seed {seed}, execution {result.executions}".encode(), repr(error))
            break
    loop.close()
    result.seconds = time.monotonic() - began
    return result


def at_length(job: tuple[int, int]) -> Result:
    """Run one process's share, a seed and a number of executions, at the lowest priority; say how far it is."""
    seed, executions = job
    os.nice(19)
    began, done = time.monotonic(), 0

    def tell(number: int) -> None:
        nonlocal done
        done += number
        if done % 100_000 == 0:
            print(f"seed {seed}: {done} executions, {time.monotonic() - began:.0f} s", flush=True)

    with tempfile.TemporaryDirectory(prefix="wherry-fuzz-") as folder:
        return fuzz_zips(seed, executions, Path(folder), tell)
