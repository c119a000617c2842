"""Takes frames out of films with ffmpeg: one folder a film, and films.json with what each film is."""

import json
import os
import subprocess
import sys
from pathlib import Path

PARAMS = json.loads(Path(os.environ["WHERRY_PARAMS"]).read_text())
INPUTS, OUTPUTS = Path(os.environ["WHERRY_INPUTS"]), Path(os.environ["WHERRY_OUTPUTS"])
TEST_FILM = ["-f", "lavfi", "-i", "testsrc=duration=3:size=320x240:rate=10"]


def films() -> list[tuple[str, list[str]]]:
    """Return the name of each film and what ffmpeg reads it from; a made-up one where there is no dataset."""
    found = sorted(path for path in (INPUTS / "dataset").rglob("*") if path.is_file()) if INPUTS.exists() else []
    return [(path.stem, ["-i", str(path)]) for path in found] or [("test", TEST_FILM)]


def take_frames(name: str, source: list[str]) -> dict[str, object]:
    """Take the frames of one film; return what was found, or why it cannot be read."""
    folder = OUTPUTS / "frames" / name
    folder.mkdir(parents=True, exist_ok=True)
    picture = f"fps=1/{PARAMS['every_s']},scale={PARAMS['width']}:-2"
    target = str(folder / f"%05d.{PARAMS['format']}")
    # -nostats: its progress is ours to tell.
    command = ["ffmpeg", "-hide_banner", "-nostats", "-loglevel", "error", *source, "-vf", picture, target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - names of files alone are not ours
    frames = sorted(path.name for path in folder.iterdir())
    if done.returncode or not frames:
        return {"film": name, "error": done.stderr.strip().splitlines()[-1:] or ["no frames"]}
    return {"film": name, "frames": len(frames)}


def main() -> int:
    """Work on all films. Exit code 1: none could be read."""
    everything, found = films(), []
    for number, (name, source) in enumerate(everything, 1):
        found.append(take_frames(name, source))
        print(f"::progress {number / len(everything)}::{name}: {found[-1].get('frames', found[-1].get('error'))}")
    frames = sum(int(one.get("frames", 0)) for one in found)
    print(f"::metric frames={frames}")
    (OUTPUTS / "films.json").write_text(json.dumps(found, indent=1))
    return 0 if frames else 1


if __name__ == "__main__":
    sys.exit(main())
