from typing import Any

import pytest

from services.gateway.app import create_app
from services.gateway.core import refusals
from services.gateway.settings import GatewaySettings


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(GatewaySettings()).openapi()


def codes(document: dict[str, Any], method: str, path: str) -> dict[str, list[str]]:
    answers = document["paths"][path][method]["responses"]
    return {status: answer["x-codes"] for status, answer in answers.items() if "x-codes" in answer}


def test_what_an_operation_takes_says_which_problems_it_may_be_answered_with(document: dict[str, Any]) -> None:
    found = codes(document, "patch", "/v1/users/{name}")
    assert found == {
        "400": ["invalid_json"], "401": ["unauthenticated"], "403": ["forbidden"], "404": ["not_found"],
        "409": ["own_account"], "413": ["too_large"], "422": ["invalid"], "503": ["unavailable"],
    }  # fmt: skip


def test_what_is_for_everybody_asks_nobody_who_they_are(document: dict[str, Any]) -> None:
    public = {
        f"{method} {path}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if operation.get("security") == []
    }
    assert public == {
        "get /healthz", "get /readyz", "get /metrics", "get /asyncapi.json", "get /v2/health/live",
        "get /v2/health/ready", "options /v1/uploads", "options /v1/uploads/{upload_id}",
    }  # fmt: skip
    assert codes(document, "get", "/healthz") == {}


def test_each_answer_of_json_is_described(document: dict[str, Any]) -> None:
    bare = [
        f"{method} {path} {status}"
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        for status, answer in operation["responses"].items()
        if answer.get("content", {}).get("application/json", {"schema": "none"}).get("schema") == {}
    ]
    assert bare == []


def test_an_answer_that_is_described_already_keeps_what_it_says() -> None:
    ready = {"application/json": {"schema": {"type": "object"}}}
    operation: dict[str, Any] = {"security": [], "responses": {"200": {}, "503": {"content": ready}}}
    refusals.describe_one("GET /v2/health/ready", operation, secured=True)
    assert set(operation["responses"]["503"]["content"]) == {"application/json", "application/problem+json"}


def test_a_table_that_names_what_there_is_not_is_refused() -> None:
    with pytest.raises(KeyError, match="there is no operation"):
        refusals.describe({"paths": {}, "security": [{"bearer": []}]})
