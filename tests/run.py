"""Run the tests, and first say which are left out here and why. Where CI is set, none is left out for being slow.

python tests/run.py [--slow] [pytest's arguments…]
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from infra.local.engine import engine  # noqa: E402 - found through the path above


def main() -> int:
    """Run them; return pytest's exit code."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--slow"]
    left_out: dict[str, str] = {}
    if engine(5) is None:
        left_out["docker"] = "no Docker engine answers"
    if "--slow" not in sys.argv and not os.environ.get("CI"):
        left_out["slow"] = "they take long; `make test-all` has them"
    for mark, why in left_out.items():
        print(f"leaving out tests marked {mark}: {why}")
    wanted = " and ".join(f"not {mark}" for mark in left_out)
    command = [sys.executable, "-m", "pytest", *(["-m", wanted] if wanted else []), *arguments]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
