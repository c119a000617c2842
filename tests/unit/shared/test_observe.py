import json
import logging

import pytest

from shared import observe
from shared.settings import ServiceSettings


@pytest.fixture(autouse=True)
def restored_logging():
    """Give the test runner its own handlers back."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("wherry").setLevel(logging.NOTSET)
    observe._set_up([])


def lines(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_is_json_with_its_action_and_ids(capsys):
    observe.configure(ServiceSettings(), "scheduler")
    observe.logger("placement").info("job_placed", job_id="j1", attempt=2)
    [line] = lines(capsys)
    assert line.pop("time").endswith("Z")
    assert line == {
        "action": "job_placed", "job_id": "j1", "attempt": 2,
        "component": "placement", "service": "scheduler", "level": "info",
    }  # fmt: skip


def test_nobody_can_end_a_line_or_fill_the_disk_through_a_field(capsys):
    observe.configure(ServiceSettings(), "gateway")
    observe.logger("api").warning("odd", name='a\r\n{"action": "forged"}\x1b[2J\u2028', body=["x" * 100_000])
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "\x1b" not in text
    assert "\u2028" not in text
    assert len(text) < 5000
    assert json.loads(text)["action"] == "odd"


def test_on_a_console_control_characters_are_escaped_too(capsys):
    observe.configure(ServiceSettings(log_format="console"), "gateway")
    observe.logger("api").warning("odd", name="a\n\x1b[2Jb\x9b")
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "\\u000a\\u001b[2Jb\\u009b" in text


def test_what_libraries_log_goes_through_the_same_renderer_and_only_from_warning_up(capsys):
    observe.configure(ServiceSettings(), "storage")
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("cannot reach %s", "it")
    [line] = lines(capsys)
    assert (line["action"], line["component"], line["message"]) == ("library_log", "some.library", "cannot reach it")


def test_an_exception_keeps_the_end_of_its_traceback(capsys):
    observe.configure(ServiceSettings(), "storage")
    try:
        raise ValueError("x" * 20_000 + "the end")  # noqa: TRY301
    except ValueError:
        observe.logger("bus").exception("failed")
    [line] = lines(capsys)
    assert line["exception"].endswith("the end")
    assert len(line["exception"]) == observe.TRACEBACK_CHARS_MAX


def test_the_level_is_the_setting(capsys):
    observe.configure(ServiceSettings(log_level="warning"), "storage")
    observe.logger("bus").info("quiet")
    observe.logger("bus").warning("loud")
    assert [line["action"] for line in lines(capsys)] == ["loud"]
