import io
from datetime import UTC, datetime

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from client.wherry import models
from client.wherry.cli import app
from client.wherry.cli.trainings import facts, roles, table
from client.wherry.effects import Emit, Now, Response, Send, Work
from client.wherry.errors import SourceError
from client.wherry.trainings import Training, listed, train

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def test_members_are_typed_as_ps_and_workers() -> None:
    assert roles("ps=1,workers=2") == {"parameter_servers": 1, "workers": 2}
    assert roles("ps=1, workers=2, chief=1")["chief"] is True
    assert roles("workers=4") == {"workers": 4}


@pytest.mark.parametrize("text", ["", "workers", "workers=", "chief=2", "workers=-1", "ps=1;workers=2"])
def test_members_that_are_typed_otherwise_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        roles(text)


def test_a_training_needs_a_file_that_trains() -> None:
    done = CliRunner().invoke(app, ["train", "--dataset", "digits"])
    assert done.exit_code == 2
    assert "--algorithm" in done.output


def test_modules_that_are_paths_are_sent_as_text(tmp_path) -> None:
    file = tmp_path / "algorithm.py"
    file.write_text("def train(): pass  # ä", encoding="utf-8")
    script = train({"algorithm": file, "helpers": "x = 1", "params": {"a": 1}}, "key", 5)
    effect = next(script)
    while not isinstance(effect, Send):
        effect = script.send(effect.function() if isinstance(effect, Work) else 0.0)
    assert (effect.request.method, effect.request.path) == ("POST", "/trainings")
    assert effect.request.headers == {"Idempotency-Key": "key"}
    assert effect.request.json == {"algorithm": "def train(): pass  # ä", "helpers": "x = 1", "params": {"a": 1}}
    with pytest.raises(StopIteration) as end:
        script.send(Response(202, {}, b'{"training_id": "j1", "status": "initializing"}'))
    assert end.value.value == Training(training_id="j1", status="initializing")


def test_a_module_that_cannot_be_read_is_named(tmp_path) -> None:
    script = train({"algorithm": tmp_path / "none.py"}, "key", 5)
    effect = next(script)
    assert isinstance(effect, Work)
    with pytest.raises(SourceError, match=r"none\.py cannot be read"):
        effect.function()


def test_pages_of_trainings_come_as_they_are_wanted() -> None:
    two = b'[{"training_id": "j3", "status": "failed"}, {"training_id": "j2", "status": "failed"}]'
    one = b'[{"training_id": "j1", "status": "failed"}]'
    pages = iter([b'{"trainings": %s, "cursor": "c"}' % two, b'{"trainings": %s, "cursor": null}' % one])
    asked, found = [], []
    script = listed(["failed", "terminated"], None, None, 5)
    effect = next(script)
    while True:
        answer: object = None
        if isinstance(effect, Emit):
            found.append(effect.item.training_id)
        elif isinstance(effect, Send):
            asked.append(effect.request.query)
            answer = Response(200, {}, next(pages))
        elif isinstance(effect, Now):
            answer = 0.0
        try:
            effect = script.send(answer)
        except StopIteration:
            break
    assert found == ["j3", "j2", "j1"]
    assert asked == [
        {"status": "failed,terminated", "limit": "200"},
        {"status": "failed,terminated", "limit": "200", "cursor": "c"},
    ]


def test_what_a_program_says_does_not_reach_the_terminal_raw() -> None:
    one = Training(
        training_id="j1", status="training", name="evil\x1b[2J", created_at=NOW,
        progress=models.Progress(fraction=0.5, message="half\x1b]0;x\x07", at=NOW), params={"a": 1},
        metrics={"loss": 0.25}, distributed={"workers": 2, "parameter_servers": 0},
    )  # fmt: skip
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table([one]))
    console.print(facts(one))
    text = console.export_text()
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "50%" in text
    assert "loss=0.25" in text
    assert "workers=2" in text
