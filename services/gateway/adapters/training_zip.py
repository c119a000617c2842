"""The source of a training: its three files and the program that runs them, as a zip."""

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

#: What is run in the container, and its name there.
RUNNER = "train.py"
_RUNNER_TEXT = (Path(__file__).parents[1] / "programs" / RUNNER).read_bytes()
_DATE = (1980, 1, 1, 0, 0, 0)


def zip_of(modules: Mapping[str, str]) -> bytes:
    """Return the zip of *modules* (their text by name) and the runner. The same modules give the same bytes."""
    files = {RUNNER: _RUNNER_TEXT, **{f"{name}.py": text.encode() for name, text in modules.items()}}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return buffer.getvalue()
