"""A service that is forked from its seed is what a process of its own would be, and the supervisor's child."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SERVICE = """
import os, sys, time
born_with = os.environ.get("GIVEN")
def main():
    print("given", os.environ["GIVEN"], "born with", born_with, sys.argv, os.read(0, 1), flush=True)
    if os.environ["GIVEN"] == "stays":
        time.sleep(600)
    return 7
"""
OWNER = """
import json, os, subprocess, sys
from pathlib import Path
from infra.local.seed import Seed, SeedError
from infra.local.supervisor import _adopt_orphans
_adopt_orphans()
folder = Path(sys.argv[1])
os.environ["PYTHONPATH"] = f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
seed = Seed("sprout", {})
ends = seed.fork({"GIVEN": "ends"}, folder / "ends.log")
code = ends.wait(60)
stays = seed.fork({"GIVEN": "stays"}, folder / "stays.log")
try:
    stays.wait(0.2)
    waited = False
except subprocess.TimeoutExpired:
    waited = True
seed.close()
runs_on = stays.poll() is None
stays.kill()
try:
    seed.fork({}, folder / "never.log")
    refused = False
except SeedError:
    refused = True
print(json.dumps([code, waited, runs_on, stays.wait(60), refused]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="processes are adopted on Linux only")
def test_what_a_seed_has_forked_is_waited_for_killed_and_outlives_it(tmp_path: Path) -> None:
    (tmp_path / "sprout.py").write_text(SERVICE)
    done = subprocess.run(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [7, True, True, -9, True]
    assert (tmp_path / "ends.log").read_text() == "given ends born with None ['sprout'] b''\n"
