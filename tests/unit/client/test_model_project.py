import json
from pathlib import Path

import pytest

from client.wherry.errors import SourceError, WherryError
from client.wherry.model_project import DESCRIPTION, NAME, PARAMS, init, load, push


def test_what_init_writes_is_a_project_and_is_never_written_over(tmp_path: Path):
    files = init(tmp_path / "new", "counter")
    assert sorted(file.name for file in files) == ["Dockerfile", "model.json", "predict.py"]
    project = load(tmp_path / "new")
    assert (project.name, project.sample) == ("counter", {"threshold": 0.5})
    assert set(project.labels) == {NAME, DESCRIPTION, PARAMS}
    assert json.loads(project.labels[PARAMS]) == project.params
    with pytest.raises(SourceError, match="is there already"):
        init(tmp_path / "new", "counter")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "no JSON object"),
        ('{"name": ""}', "is no name for a model"),
        ('{"name": "a", "parms": {}}', "no field 'parms'"),
        ('{"name": "a", "params": []}', "params must be an object"),
        ('{"name": "a", "params": {"type": "string"}}', "JSON Schema of an object"),
        ('{"name": "a", "params": {"type": "object", "required": ["rate"]}}', "sample has no 'rate'"),
    ],
)
def test_what_is_wrong_with_a_project_is_said(tmp_path: Path, text: str, words: str):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(SourceError, match=words):
        load(tmp_path)


def test_a_folder_without_a_project_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(SourceError, match="wherry models init"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["Bad Name!", "-first", "", "x" * 129])
def test_a_name_that_no_model_may_have_is_refused_before_anything_is_built(tmp_path: Path, name: str):
    with pytest.raises(SourceError, match="small letters, digits"):
        init(tmp_path / "new", name)
    assert not (tmp_path / "new").exists()
    (tmp_path / "model.json").write_text(json.dumps({"name": name}))
    with pytest.raises(SourceError, match=r"model\.json: .* is no name for a model"):
        load(tmp_path)


def test_an_image_that_was_never_built_is_not_pushed_and_what_builds_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\nexit 1\n")
    docker.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    folder = tmp_path / "a model"
    init(folder, "counter")
    with pytest.raises(WherryError, match=r"no image counter:latest here: wherry models build '.*a model' makes it"):
        push(load(folder), "counter:latest", "127.0.0.1:1/counter")
