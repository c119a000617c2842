"""Parameters of a model, checked against its JSON Schema: each fault named by where it is."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NoReturn, cast

import jsonschema_rs

from shared.errors import FieldProblem

FAULTS_MOST = 50
#: Patterns of a schema are somebody else's: this engine takes time that grows with the text alone.
_PATTERNS = jsonschema_rs.RegexOptions()


def schema_fault(schema: Mapping[str, Any]) -> str | None:
    """Return why *schema* is no JSON Schema that may be used here, or None."""
    try:
        _validator(schema)
    except jsonschema_rs.ValidationError as error:
        where = "/".join(str(part) for part in error.instance_path)
        return f"{where}: {error.message}" if where else error.message
    except (ValueError, TypeError) as error:
        return str(error).splitlines()[0][:500]
    return None


def faults(schema: Mapping[str, Any], params: Mapping[str, Any]) -> list[FieldProblem]:
    """Return what is wrong with *params*, at most `FAULTS_MOST`; nothing where they fit.

    Raises:
        ValueError: the schema itself cannot be used.
    """
    try:
        checks = _validator(schema)
    except jsonschema_rs.ValidationError as error:
        raise ValueError(error.message) from None
    named = (fault for error in checks.iter_errors(dict(params)) for fault in _named(error))
    return list(islice(named, FAULTS_MOST))


def with_defaults(schema: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return *params* with the defaults that *schema* names for those that are not given, in objects within too."""
    filled = dict(params)
    for name, part in _properties(schema).items():
        if name not in filled and "default" in part:
            filled[name] = part["default"]
        elif name in filled and isinstance(filled[name], dict) and "properties" in part:
            filled[name] = with_defaults(part, cast("dict[str, Any]", filled[name]))
    return filled


def given(schema: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of *params* that `with_defaults` would not have put there."""
    filled = with_defaults(schema, {})
    return {name: value for name, value in params.items() if name not in filled or filled[name] != value}


def _properties(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    found = schema.get("properties")
    named = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    return {name: cast("dict[str, Any]", part) for name, part in named.items() if isinstance(part, dict)}


def _validator(schema: Mapping[str, Any]) -> Any:
    return jsonschema_rs.validator_for(dict(schema), retriever=_fetches_nothing, pattern_options=_PATTERNS)


def _fetches_nothing(uri: str) -> NoReturn:
    raise ValueError(f"the schema refers to {uri}: put it inside, under $defs")


def _named(error: Any) -> Iterator[FieldProblem]:
    path = list(error.instance_path)
    match error.kind.name:
        case "required":
            yield FieldProblem(field=_path([*path, error.kind.property]), message="This parameter is required")
        case "additionalProperties" | "unevaluatedProperties":
            for name in error.kind.unexpected:
                yield FieldProblem(field=_path([*path, name]), message="There is no such parameter")
        case _:
            yield FieldProblem(field=_path(path), message=_plain(error.message))


def _path(parts: list[str | int]) -> str:
    return ".".join(["params", *map(str, parts)])[:300]


def _plain(message: str) -> str:
    text = message if len(message) <= 300 else f"{message[:299]}…"
    return text[:1].upper() + text[1:]
