"""What files are called, and what they are said to be, when they come in."""

import re

BINARY = "application/octet-stream"
_MEDIA_TYPE = re.compile(r"^[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}(;[\x20-\x7e]{0,128})?\Z")
_CHARS_MAX = 255


def file_name(text: str) -> str:
    """Return a file's name as it is kept: without folders, and without what cannot be seen."""
    base = text.replace("\\", "/").rpartition("/")[2]
    return "".join(char for char in base if char.isprintable())[:_CHARS_MAX]


def is_media_type(text: str) -> bool:
    """Return whether *text* is a media type, which may have parameters."""
    return _MEDIA_TYPE.match(text) is not None
