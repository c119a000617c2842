import importlib.util
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shared.channels import ATTEMPT_FINISHED, CHANNELS, LOGIN
from shared.docs import asyncapi, state_diagram, subjects_page
from shared.events import AttemptFinished, Event
from shared.requests.accounts import Login
from shared.states import AttemptState

ROOT = Path(__file__).resolve().parents[3]
DOCUMENT = asyncapi("1.2.3")


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list):
        for part in value:
            yield from references(part)


def schema_of(message: str) -> dict[str, Any]:
    return {**DOCUMENT["components"]["messages"][message]["payload"], "components": DOCUMENT["components"]}


def test_every_reference_leads_somewhere():
    for reference in set(references(DOCUMENT)):
        found: Any = DOCUMENT
        for part in reference.removeprefix("#/").split("/"):
            found = found[part]


def test_every_channel_has_an_operation_for_each_sender_and_reader():
    for channel in CHANNELS:
        assert DOCUMENT["channels"][channel.name]["address"] == channel.template
        for service in channel.sent_by:
            assert DOCUMENT["operations"][f"{service}.send.{channel.name}"]["tags"] == [{"name": service.value}]
        for service in channel.read_by:
            assert f"{service}.receive.{channel.name}" in DOCUMENT["operations"]


def test_an_event_that_is_sent_matches_its_schema():
    event = Event[AttemptFinished](
        id="e1",
        source="/wherry/node_agent/n1",
        type=ATTEMPT_FINISHED.event_type or "",
        time=datetime(2025, 1, 1, tzinfo=UTC),
        subject="j1",
        data=AttemptFinished(attempt=1, at=datetime(2025, 1, 1, tzinfo=UTC), state=AttemptState.SUCCEEDED),
    )
    jsonschema.validate(json.loads(event.to_bytes()), schema_of("attemptFinished"))


@pytest.mark.parametrize(
    ("field", "value"), [("type", "io.wherry.attempt.running.v1"), ("data", {"attempt": "one"}), ("id", None)]
)
def test_an_event_with_another_type_or_shape_does_not_match(field: str, value: Any):
    event = {
        "specversion": "1.0",
        "id": "e1",
        "source": "/x",
        "type": ATTEMPT_FINISHED.event_type,
        "time": "2025-01-01T00:00:00Z",
        "subject": "j1",
        "data": {"attempt": 1, "at": "2025-01-01T00:00:00Z", "state": "succeeded"},
    }
    jsonschema.validate(event, schema_of("attemptFinished"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**event, field: value}, schema_of("attemptFinished"))


def test_a_request_matches_its_schema_and_names_its_answer():
    jsonschema.validate(json.loads(Login(user="a", password="b").to_bytes()), schema_of(LOGIN.name))
    operation = DOCUMENT["operations"]["gateway.send.login"]
    assert operation["reply"]["channel"] == {"$ref": "#/channels/loginReply"}
    assert DOCUMENT["components"]["messages"]["loginReply"]["payload"] == {"$ref": "#/components/schemas/Session"}


def test_the_page_has_every_subject():
    page = subjects_page()
    assert [channel.name for channel in CHANNELS if f"| `{channel.template}` |" not in page] == []


def test_a_diagram_has_an_arrow_for_each_move_and_an_end_for_each_final_state():
    class Light(StrEnum):
        RED = "red"
        GREEN = "green"

    moves = {Light.RED: {"go": frozenset({Light.GREEN}), "start": frozenset({Light.GREEN})}, Light.GREEN: {}}
    assert state_diagram(moves, Light.RED).splitlines()[2:-1] == [
        "    [*] --> red",
        "    red --> green: go, start",
        "    green --> [*]",
    ]


def test_the_committed_documents_are_current():
    for name, text in generator().documents().items():
        assert (ROOT / name).read_text() == text, f"{name} is not current: run `make docs`"
