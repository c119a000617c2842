"""Run the tests, and first say which are left out here and why. Where CI is set, none is left out for being slow.

python tests/run.py [--slow] [pytest's arguments…]

Several processes share the tests, a file at a time (tests/conftest.py), because most tests wait more than they compute.
`-n 0` among the arguments runs all in one, in the order of their names.
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from infra.local.engine import engine  # noqa: E402 - found through the path above

#: Each has servers of its own; with more than this they are in each other's way.
PROCESSES_MAX = 6


def processes() -> int:
    """Return how many processes share the tests: one more than cores, for what waits."""
    return min(len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else 3, PROCESSES_MAX)


def main() -> NoReturn:
    """Become pytest, which so hears a Ctrl-C itself and has the time to stop the servers that it started."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--slow"]
    left_out: dict[str, str] = {}
    if engine(5) is None:
        left_out["docker"] = "no Docker engine answers"
    if "--slow" not in sys.argv and not os.environ.get("CI"):
        left_out["slow"] = "they take long; `make test-all` has them"
    for mark, why in left_out.items():
        print(f"leaving out tests marked {mark}: {why}")
    wanted = " and ".join(f"not {mark}" for mark in left_out)
    shared = ["-n", str(processes()), "--dist", "loadfile", "--no-loadscope-reorder"]
    command = [sys.executable, "-m", "pytest", *shared, *(["-m", wanted] if wanted else []), *arguments]
    sys.stdout.flush()
    os.chdir(ROOT)
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
