"""The filters themselves. To add one, write a function like these.

The gateway reads here, without running anything, which there are: the functions marked with `@picture_filter`.
"""

from typing import Annotated

from PIL import Image, ImageFilter

from images.filters.registry import Range, picture_filter


@picture_filter
def grayscale(picture: Image.Image) -> Image.Image:
    """Shades of gray."""
    return picture.convert("LA" if picture.mode in ("LA", "RGBA") else "L")


@picture_filter
def blur(
    picture: Image.Image, *, radius: Annotated[float, Range(0, 100, "How far the blur reaches, in pixels.")] = 2.0
) -> Image.Image:
    """Gaussian blur."""
    return picture.filter(ImageFilter.GaussianBlur(radius))
