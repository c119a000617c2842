"""Pictures as files: read with care, whoever sent them, and written in the format in which they came."""

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from images.filters import filters as _all
from images.filters.registry import Refused, found

__all__ = ["Refused", "apply", "written_as"]
_ = _all  # imported so that its filters are there

#: More are refused: a small file may unfold to more memory than there is.
PIXELS_MAX = int(os.environ.get("FILTERS_PIXELS_MAX", "64_000_000"))
_LIMIT = f"at most {PIXELS_MAX / 1e6:g} million are taken"
#: What is read. Others of Pillow's formats start programs, or draw.
_SAFE = (
    "AVIF", "BMP", "DDS", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "PSD", "QOI", "SGI",
    "SUN", "TIFF", "WEBP",
)  # fmt: skip
Image.init()  # knows all formats from now on
FORMATS = tuple(name for name in _SAFE if name in Image.OPEN)
_KEPT = {"JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",)}
_SAVED: Mapping[str, Mapping[str, Any]] = {"JPEG": {"quality": 95}, "PNG": {}}


def apply(source: Path, target: Path, params: Mapping[str, Any]) -> Path:
    """Write what the filter that *params* name makes of *source*; return the path, which may have another ending.

    Raises:
        Refused: it is no picture, or too large a one, or a parameter does not fit.
    """
    chosen = found(params)
    picture, format_, profile = _read(source)
    result = chosen(picture, params)
    path = written_as(target, format_)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A profile is for the colours that it was made for.
    more = {"icc_profile": profile} if profile and len(result.getbands()) == len(picture.getbands()) else {}
    result.save(path, format_, **_SAVED[format_], **more)
    return path


def written_as(target: Path, format_: str) -> Path:
    """Return *target* with an ending that says its format."""
    endings = _KEPT[format_]
    return target if target.suffix.lower() in endings else target.with_name(f"{_stem(target)}{endings[0]}")


def _stem(path: Path) -> str:
    # Of "v1.2 final" nothing is an ending.
    return path.stem if 1 < len(path.suffix) <= 6 and path.suffix[1:].isalnum() else path.name


def _read(path: Path) -> tuple[Image.Image, str, bytes | None]:
    """Return a picture's first frame, upright and in a mode that filters take; its format; its colour profile."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # judged here
        try:
            with Image.open(path, formats=FORMATS) as file:
                width, height = file.size
                if width * height > PIXELS_MAX:
                    raise Refused(f"it has {width} by {height} pixels, and {_LIMIT}")
                file.load()
                profile = file.info.get("icc_profile")
                format_ = "JPEG" if file.format in ("JPEG", "MPO") else "PNG"
                return _plain(ImageOps.exif_transpose(file)), format_, profile if file.mode != "CMYK" else None
        except UnidentifiedImageError as error:
            raise Refused("it is no picture of a format that is known") from error
        except Image.DecompressionBombError as error:
            raise Refused(f"it has far too many pixels: {_LIMIT}") from error
        except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:  # what its readers find wrong
            if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
                raise
            raise Refused(f"it is damaged or cut off: {error}") from error


def _plain(picture: Image.Image) -> Image.Image:
    """Return *picture* in one of the modes L, LA, RGB, RGBA. Transparency stays."""
    if picture.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I;16") or picture.mode == "I":
        return picture.convert("I").point(lambda value: value / 256).convert("L")
    if picture.mode in ("1", "L", "F"):
        return picture.convert("LA" if "transparency" in picture.info else "L")
    return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
