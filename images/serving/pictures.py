"""Pictures as the numbers that a model takes."""

import io

import numpy as np
from PIL import Image, UnidentifiedImageError

#: Pixels of a picture, as it is sent: a small file may hold a very large one.
_PIXELS_MAX = 50_000_000
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def pixels(body: bytes, width: int, height: int, channels: int) -> np.ndarray:
    """Return a picture, scaled, as numbers from 0 to 1: row by row, of each pixel its channels.

    Raises:
        ValueError: it is no picture, too large a one, or has no such channels.
    """
    try:
        with Image.open(io.BytesIO(body)) as picture:
            if picture.width * picture.height > _PIXELS_MAX:
                raise ValueError(f"the picture has {picture.width} x {picture.height} pixels: too many")
            scaled = picture.convert(_MODES[channels]).resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(scaled, dtype=np.float32).reshape(-1) / 255
    except UnidentifiedImageError:  # its words name an object of Python's
        raise ValueError(f"that is no picture that can be read: {_begins(body)}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"that is no picture: {error}") from error
    except KeyError:
        raise ValueError(f"a picture has 1 to 4 channels, not {channels}") from None


def _begins(body: bytes) -> str:
    return f"its {len(body)} bytes begin with {bytes(body[:16])!r}" if body else "it is empty"
