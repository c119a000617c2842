"""Run the tests, and first say which are left out here and why. Where CI is set, none is left out for being slow.

python tests/run.py [--slow] [pytest's arguments…]

Several processes share the tests, a file at a time (tests/conftest.py), because most tests wait more than they compute.
`-n 0` among the arguments runs all in one, in the order of their names. What judges moments (marked alone) comes after
all others, by itself.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from infra.local.engine import engine  # noqa: E402 - found through the path above

#: Each has servers of its own; with more than this they are in each other's way.
PROCESSES_MAX = 6
#: Exit codes of pytest.
_INTERRUPTED, _NOTHING_FOUND = 2, 5


def processes() -> int:
    """Return how many processes share the tests: one more than cores, for what waits."""
    return min(len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else 3, PROCESSES_MAX)


def left_out(*, slow: bool) -> dict[str, str]:
    """Return the marks of the tests that are not run here, each with the reason."""
    found: dict[str, str] = {}
    if engine(5) is None:
        found["docker"] = "no Docker engine answers"
    if not slow:
        found["slow"] = "they take long; `make test-all` has them"
    found["frameworks"] = "they take images of gigabytes; `make frameworks` builds those and has them"
    if not os.environ.get("WHERRY_TEST_POWER"):
        found["power"] = "they cut the power of disks in files, as root; WHERRY_TEST_POWER=1 asks for them"
    return found


def run(marks: str, arguments: list[str]) -> int:
    """Run the tests with *marks* and return pytest's exit code. A Ctrl-C is pytest's: it has servers to stop."""
    sys.stdout.flush()
    with subprocess.Popen([sys.executable, "-m", "pytest", "-m", marks, *arguments], cwd=ROOT) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue


def main() -> int:
    """Run what may share the machine, then what must be alone on it; return the exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--slow"]
    without = left_out(slow="--slow" in sys.argv or bool(os.environ.get("CI")))
    for mark, why in without.items():
        print(f"leaving out tests marked {mark}: {why}")
    wanted = [f"not {mark}" for mark in without]
    shared = ["-n", str(processes()), "--dist", "loadfile", "--no-loadscope-reorder"]
    together = run(" and ".join([*wanted, "not alone"]), [*shared, *arguments])
    if together == _INTERRUPTED:
        return together
    alone = run(" and ".join([*wanted, "alone"]), arguments)
    return max({together, alone} - {_NOTHING_FOUND}, default=_NOTHING_FOUND)


if __name__ == "__main__":
    sys.exit(main())
