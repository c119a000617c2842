"""From what was typed to a job spec. Sizes, times and names are the server's to check."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

#: Options that are fields of the spec as they are.
_PLAIN = (
    "name", "image", "command", "runtime", "priority", "max_attempts", "on_disconnect", "replace_after", "exclusive",
    "network", "model",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SpecOptions:
    """The options of `wherry submit` that go into the spec; None and empty ones change nothing."""

    name: str | None = None
    image: str | None = None
    command: str | None = None
    runtime: str | None = None
    cpus: float | None = None
    memory: str | None = None
    gpus: int | None = None
    gpu_memory: str | None = None
    timeout: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    tags: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    notify_email: tuple[str, ...] = ()
    notify_webhook: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    on_disconnect: str | None = None
    replace_after: str | None = None
    exclusive: bool | None = None
    network: str | None = None
    model: str | None = None
    disk: str | None = None
    cluster: str | None = None
    node: str | None = None


def build_spec(base: dict[str, Any], options: SpecOptions, default_name: str | None) -> dict[str, Any]:
    """Return *base* with what the options say; an option wins over the file, lists are added to.

    Raises:
        typer.BadParameter: an option is not NAME=VALUE.

    """
    spec = dict(base)
    if options.runtime == "process":
        spec.pop("image", None)
    for field in _PLAIN:
        _put(spec, field, getattr(options, field))
    if default_name:
        spec.setdefault("name", default_name)
    _merge(spec, "resources", {key: getattr(options, key) for key in ("cpus", "memory", "gpus", "gpu_memory", "disk")})
    _merge(spec, "timeouts", {"run": options.timeout})
    _merge(spec, "env", dict(_pair(text, "--env") for text in options.env))
    _merge(spec, "params", {key: _value(text) for key, text in (_pair(text, "--param") for text in options.params)})
    _merge(spec, "inputs", dict(_pair(text, "--input") for text in options.inputs))
    _extend(spec, "needs", [_need(text) for text in options.needs])
    _merge(spec, "placement", {"cluster": options.cluster, "node": options.node})
    if options.tags:
        placement = dict(spec.get("placement", {}))
        spec["placement"] = {**placement, "tags": [*placement.get("tags", []), *options.tags]}
    _extend(spec, "labels", options.labels)
    _extend(spec, "notify", [{"email": address} for address in options.notify_email])
    _extend(spec, "notify", [{"webhook": {"url": url}} for url in options.notify_webhook])
    return spec


def read_spec(path: Path | None) -> dict[str, Any]:
    """Return the spec in the JSON file at *path*, or an empty one.

    Raises:
        typer.BadParameter: it cannot be read, or is no JSON object.

    """
    if path is None:
        return {}
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error.strerror}", param_hint="--spec") from error
    except ValueError as error:
        raise typer.BadParameter(f"{path} is no JSON: {error}", param_hint="--spec") from error
    if not isinstance(spec, dict):
        raise typer.BadParameter(f"{path} holds no JSON object", param_hint="--spec")
    return spec


def _put(target: dict[str, Any], key: str, value: object) -> None:
    if value is not None:
        target[key] = value


def _merge(spec: dict[str, Any], field: str, given: dict[str, Any]) -> None:
    changes = {key: value for key, value in given.items() if value is not None}
    if changes:
        spec[field] = {**spec.get(field, {}), **changes}


def _extend(spec: dict[str, Any], field: str, items: Iterable[Any]) -> None:
    more = list(items)
    if more:
        spec[field] = [*spec.get(field, []), *more]


def _pair(text: str, option: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE", param_hint=option)
    return key, value


def _need(text: str) -> str | dict[str, str]:
    """Return a need: JOB alone, or JOB:ok, JOB:any or JOB:always."""
    job, colon, on = text.partition(":")
    return {"job": job, "on": on} if colon else job


def _value(text: str) -> object:
    """Return a parameter's value: JSON where it is JSON (numbers, true, lists), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
