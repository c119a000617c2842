"""What `wherry map` says where it cannot be meant."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.wherry.cli.main import app

HOW = ["map", "--image", "busybox", "-c", "true"]


@pytest.fixture
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("WHERRY_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WHERRY_TOKEN", "none")


def test_without_anything_to_do_it_says_what_to_give(nobody: None):
    ended = CliRunner().invoke(app, HOW)
    assert ended.exit_code == 2
    assert "give files, --over or --item" in ended.output


@pytest.mark.parametrize("more", [["other.txt"], ["--over", "dataset:photos"]])
def test_a_folder_is_given_alone(nobody: None, tmp_path: Path, more: list[str]):
    ended = CliRunner().invoke(app, [*HOW, str(tmp_path), *more])
    assert "is a folder: give it alone" in str(ended.exception or "") + ended.output
    assert ended.exit_code != 0
