"""What is said of models of the catalogue."""

from typing import Any

import pytest

from services.gateway.core.models import checked_document, document
from shared.catalogue import Model, ModelVersion
from shared.clock import utc_now

NOW = utc_now()


def version(number: int, params: dict[str, Any] | None) -> ModelVersion:
    return ModelVersion(
        version=number, image="i", params=params, remarks=("it has no name",), created_by="eva", created_at=NOW
    )


def model(*versions: ModelVersion) -> Model:
    return Model(
        name="digits", owner_id="u1", owner_name="eva", versions=versions, version_count=len(versions),
        created_at=NOW, updated_at=NOW,
    )  # fmt: skip


def test_a_label_that_is_no_json_schema_is_said_where_the_model_is_released_and_shown() -> None:
    broken, sound = version(2, {"type": "objct"}), version(1, {"type": "object"})
    newest, older = checked_document(model(broken, sound), broken).versions
    assert newest.remarks[0] == "it has no name"
    assert "no JSON Schema, so that it cannot be run: type" in newest.remarks[1]
    assert older.remarks == ["it has no name"]


@pytest.mark.parametrize("params", [None, {}, {"type": "object", "properties": {"epochs": {"type": "integer"}}}])
def test_of_a_schema_that_can_be_used_nothing_is_said(params: dict[str, Any] | None) -> None:
    one = version(1, params)
    assert checked_document(model(one), one) == document(model(one), one)
