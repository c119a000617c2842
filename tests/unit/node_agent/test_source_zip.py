"""Unpacking a zip lets go of it, however that ends."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from services.node_agent.adapters import source_zip
from shared.errors import WherryError


def damaged(path: Path) -> Path:
    """Write a zip whose directory is right, and whose content is not what its checksum says."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("run.sh", "echo hello")
    path.write_bytes(buffer.getvalue().replace(b"echo hello", b"echo jello"))
    return path


def _tar(members: source_zip.Members, _: Path) -> None:
    for _piece in source_zip.tar_of(members, "workspace"):
        pass


@pytest.mark.parametrize("way", [_tar, source_zip.unpack])
def test_a_zip_that_turns_out_to_be_damaged_is_not_left_open(
    tmp_path: Path, way: Callable[[source_zip.Members, Path], None]
) -> None:
    path = damaged(tmp_path / "source.zip")
    (tmp_path / "to").mkdir()
    members = source_zip.members(path, bytes_max=1 << 20)
    with pytest.raises(WherryError):
        way(members, tmp_path / "to")
    assert members.gi_frame is None, "it still holds the file"
