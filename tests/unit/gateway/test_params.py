import pytest

from services.gateway.core.params import FAULTS_MOST, faults, given, schema_fault, with_defaults


def test_a_pattern_that_would_take_other_engines_years_takes_this_one_no_time():
    schema = {"properties": {"name": {"pattern": "^(a+)+$"}}}
    assert [one.field for one in faults(schema, {"name": "a" * 100_000 + "b"})] == ["params.name"]


def test_a_schema_that_refers_outside_is_refused_and_nothing_is_fetched():
    fault = schema_fault({"$ref": "http://169.254.169.254/latest/meta-data"})
    assert fault is not None
    assert "put it inside, under $defs" in fault


@pytest.mark.parametrize("schema", [{"type": "objct"}, {"properties": {"a": {"pattern": "("}}}, {"required": "a"}])
def test_what_is_no_schema_is_said_to_be_none(schema: dict[str, object]):
    assert schema_fault(schema)
    with pytest.raises(ValueError, match=r"."):
        faults(schema, {})


def test_faults_are_named_by_where_they_are_and_there_are_not_too_many_of_them():
    schema = {
        "properties": {"layers": {"type": "array", "items": {"type": "object", "required": ["size"]}}},
        "additionalProperties": {"type": "integer"},
    }
    wrong = faults(schema, {"layers": [{"size": 1}, {}], "other": "x"})
    assert {(one.field, one.message) for one in wrong} == {
        ("params.layers.1.size", "This parameter is required"), ("params.other", '"x" is not of type "integer"'),
    }  # fmt: skip
    assert len(faults(schema, {f"p{number}": "x" for number in range(500)})) == FAULTS_MOST


def test_defaults_are_filled_in_also_within_objects_and_never_over_what_is_given():
    schema = {
        "properties": {
            "epochs": {"default": 3}, "rate": {"default": 0.1}, "none": {},
            "net": {"properties": {"depth": {"default": 2}}},
        }
    }  # fmt: skip
    assert with_defaults(schema, {"rate": 1, "net": {}}) == {"rate": 1, "net": {"depth": 2}, "epochs": 3}
    assert with_defaults({}, {"a": 1}) == {"a": 1}


def test_what_was_filled_in_is_told_from_what_was_given() -> None:
    schema = {"type": "object", "properties": {"scale": {"type": "number", "default": 2}, "word": {"default": "a"}}}
    assert given(schema, with_defaults(schema, {"scale": 3})) == {"scale": 3}
    assert given(schema, {"other": 1, "word": "a"}) == {"other": 1}
