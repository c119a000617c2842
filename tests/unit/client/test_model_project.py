import json
from pathlib import Path

import pytest

from client.wherry.errors import SourceError
from client.wherry.model_project import DESCRIPTION, NAME, PARAMS, init, load


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
        ('{"name": ""}', "has no name"),
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
