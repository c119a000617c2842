"""What `make setup` and `make up` put into .venv beside the packages: the commands, usable from anywhere."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "programs.sh"


@pytest.fixture
def bin_folder(tmp_path: Path) -> Path:
    """An environment made as setup.sh makes one, which finds this one's packages."""
    folder = tmp_path / "with spaces" / ".venv"
    made = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(made, check=True)
    (site,) = folder.glob("lib/python3.*/site-packages")
    (ours,) = {path for path in sys.path if path.endswith("site-packages")}
    (site / "outer.pth").write_text(f"{ours}\n")
    subprocess.run(["sh", str(SCRIPT), str(folder)], check=True)
    return folder / "bin"


@pytest.mark.parametrize("program", ["wherry", "wherry-agent"])
def test_a_command_works_from_any_folder_whatever_lies_in_it(bin_folder: Path, tmp_path: Path, program: str):
    place = tmp_path / "my project"
    (place / "client").mkdir(parents=True)
    (place / "client" / "__init__.py").write_text("raise SystemExit('not this one')")
    (place / "json.py").write_text("raise SystemExit('nor this one')")
    done = subprocess.run([bin_folder / program, "--help"], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"Usage: {program} " in done.stdout


def test_the_sdk_is_found_from_any_folder(bin_folder: Path, tmp_path: Path):
    done = subprocess.run(
        [bin_folder / "python", "-c", "import client.wherry; print(client.wherry.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str(ROOT / "client" / "wherry" / "__init__.py"), done.stderr
