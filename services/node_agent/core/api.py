"""What a program with network ``api`` may ask of its node: this job's own data, and nothing else. Pure."""

import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from services.node_agent.core.output import MESSAGE_CHARS_MAX
from services.node_agent.core.series import SYSTEM
from shared.errors import FieldProblem, WherryError
from shared.events import MetricPoint, Progress
from shared.fleet import Order
from shared.model import Frozen

T = TypeVar("T", bound=Frozen)
#: Of a body of JSON.
JSON_BYTES_MAX = 256 * 1024
_PATH_BYTES_MAX, _NAME_BYTES_MAX = 1024, 255
_PREFIX = "/v1/job"
_ESCAPED = re.compile(rb"%([0-9A-Fa-f]{2})")
_INDEX = (
    "GET /v1/job, GET /v1/job/source, GET /v1/job/inputs, GET /v1/job/inputs/{name}[/{path}], "
    "PUT /v1/job/outputs/{path}, POST /v1/job/outputs?unpack=true, POST /v1/job/progress, POST /v1/job/metrics, "
    "POST /v1/job/remarks"
)

What = Literal["job", "source", "inputs", "input", "output", "unpack", "progress", "metrics", "remarks"]
#: Status and title of the codes that a program may see; one that is not here is the node's own fault.
_KNOWN: Mapping[str, tuple[int, str]] = {
    "bad_request": (400, "The request cannot be read"),
    "unauthenticated": (401, "Who are you?"),
    "not_found": (404, "Not found"),
    "input_missing": (404, "Not found"),
    "method_not_allowed": (405, "Method not allowed"),
    "too_slow": (408, "Too slow"),
    "conflict": (409, "Conflict"),
    "not_running": (409, "The job does not run"),
    "too_large": (413, "Too large"),
    "disk": (413, "Too large"),
    "invalid": (422, "The request is not valid"),
    "bad_source": (422, "The zip is not usable"),
    "stage_in_failed": (503, "Not available right now"),
    "unavailable": (503, "Not available right now"),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request is for. `name` is an input's; `path` is below it, or below the outputs."""

    what: What
    name: str = ""
    path: str = ""


def check_bearer(header: str, token: str) -> None:
    """Return if an Authorization header carries *token*. How long that takes does not tell how much of it is right.

    Raises:
        WherryError: ``unauthenticated``.
    """
    scheme, _, given = header.encode("utf-8", "replace").partition(b" ")
    if not (hmac.compare_digest(given.strip(), token.encode()) and scheme.lower() == b"bearer"):
        raise WherryError("unauthenticated", "Send the token of WHERRY_TOKEN_FILE: Authorization: Bearer <token>.")


def asked(method: str, target: str) -> Asked:
    """Return what a request with *target* (path and query, as it was sent) is for.

    Raises:
        WherryError: ``not_found``, ``method_not_allowed``, ``invalid``.
    """
    path, _, query = target.partition("?")
    if path != _PREFIX and not path.startswith(f"{_PREFIX}/"):
        raise _nothing()
    first, _, rest = path.removeprefix(_PREFIX).strip("/").partition("/")
    match (first, bool(rest)):
        case ("", _):
            return _only("GET", method, Asked("job"))
        case ("source", False):
            return _only("GET", method, Asked("source"))
        case ("inputs", False):
            return _only("GET", method, Asked("inputs"))
        case ("inputs", True):
            name, _, below = rest.partition("/")
            return _only("GET", method, Asked("input", _text(name), below and _safe(_text(below))))
        case ("outputs", True):
            return _only("PUT", method, Asked("output", path=_safe(_text(rest))))
        case ("outputs", False):
            return _only("POST", method, Asked("unpack", path=_folder(query)))
        case ("progress" | "metrics" | "remarks", False):
            return _only("POST", method, Asked(first))
        case _:
            raise _nothing()


def _nothing() -> WherryError:
    return WherryError("not_found", f"There is nothing here; there are: {_INDEX}.")


def _only(allowed: str, method: str, found: Asked) -> Asked:
    if method != allowed:
        raise WherryError("method_not_allowed", f"This takes {allowed}, not {method}.")
    return found


def _folder(query: str) -> str:
    """Return the folder of the outputs that a zip is unpacked into."""
    given = {name: _text(value) for name, _, value in (one.partition("=") for one in query.split("&"))}
    if given.get("unpack", "").lower() not in ("true", "1", "yes"):
        fault = FieldProblem(field="unpack", message="must be true")
        message = "A zip is sent with ?unpack=true, a file with PUT to /v1/job/outputs/{path}."
        raise WherryError("invalid", message, fields=(fault,))
    return _safe(given["path"].strip("/")) if given.get("path", "").strip("/") else ""


def _text(part: str) -> str:
    try:
        return _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), part.encode("latin-1")).decode()
    except UnicodeDecodeError as error:
        raise WherryError("invalid", "The path is not UTF-8.") from error


def _safe(path: str) -> str:
    """Return *path* if it stays below where it begins, and can be the name of a file that is kept."""
    parts = path.split("/")
    is_whole = all(part not in ("", ".", "..") and len(part.encode()) <= _NAME_BYTES_MAX for part in parts)
    if not is_whole or len(path.encode()) > _PATH_BYTES_MAX or any(ord(char) < 32 or ord(char) == 127 for char in path):
        raise WherryError("invalid", f"{path[:200]!r} is no path of a file: names joined by /, without . and ..")
    return path


def described(order: Order, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what a program is told of its job. Whom others notify is not its business."""
    spec = order.spec.model_dump(mode="json", exclude_defaults=True, exclude={"notify", "idempotency_key"})
    return {
        "id": order.job_id,
        "attempt": order.attempt,
        "name": order.spec.name,
        "params": order.spec.params,
        "spec": spec,
        "has_source": order.spec.source is not None,
        "inputs": inputs,
    }


# --- what it says of itself ----------------------------------------------------------------------------------------


class _ProgressIn(Frozen):
    fraction: float = Field(ge=0, le=1)
    message: str = ""


MetricName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_./:@-]{0,99}$")]


class _MetricsIn(Frozen):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    values: Annotated[dict[MetricName, float], Field(min_length=1, max_length=1000)]
    step: int | None = Field(default=None, ge=-(2**63), lt=2**63)


class _RemarksIn(Frozen):
    remarks: Annotated[tuple[Annotated[str, StringConstraints(min_length=1)], ...], Field(min_length=1, max_length=50)]


def progress_of(body: bytes, at: datetime) -> Progress:
    """Return the progress in ``{"fraction": 0.4, "message": "…"}``.

    Raises:
        WherryError: ``invalid``, ``bad_request``.
    """
    given = _parsed(_ProgressIn, _json(body))
    return Progress(fraction=given.fraction, message=given.message.strip()[:MESSAGE_CHARS_MAX], at=at)


def metrics_of(body: bytes, at: datetime) -> list[MetricPoint]:
    """Return the points in ``{"values": {"loss": 0.1}, "step": 3}``.

    Raises:
        WherryError: ``invalid``, ``bad_request``.
    """
    given = _parsed(_MetricsIn, _json(body))
    ours = [name for name in given.values if name.startswith(SYSTEM)]
    if ours:
        fault = FieldProblem(field=f"values.{ours[0]}", message=f"names with {SYSTEM} are what the node measures")
        raise WherryError("invalid", "A metric's name is taken.", fields=(fault,))
    return [MetricPoint(name=name, value=value, step=given.step, at=at) for name, value in given.values.items()]


def remarks_of(body: bytes, media_type: str) -> tuple[str, ...]:
    """Return the remarks in plain text (one), or in ``{"remarks": ["…"]}``.

    Raises:
        WherryError: ``invalid``, ``bad_request``.
    """
    if media_type.partition(";")[0].strip().lower() == "application/json":
        found = _parsed(_RemarksIn, _json(body)).remarks
    else:
        found = (body.decode("utf-8", "replace"),)
    kept = tuple(" ".join(text.split()) for text in found)
    if not any(kept):
        raise WherryError("invalid", "The remark is empty.")
    return tuple(filter(None, kept))


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WherryError("bad_request", f"The body is not JSON: {error}") from error


def _parsed(model: type[T], given: Any) -> T:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        faults = tuple(
            FieldProblem(field=".".join(map(str, one["loc"])) or "body", message=one["msg"])
            for one in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise WherryError("invalid", "The body is not what it has to be.", fields=faults) from error


def problem(error: WherryError) -> tuple[int, dict[str, Any]]:
    """Return the status and the problem document (RFC 9457) of *error*."""
    status, title = _KNOWN.get(error.code, (500, "Internal error"))
    document: dict[str, Any] = {
        "type": f"urn:wherry:problem:{error.code.replace('_', '-')}",
        "title": title,
        "status": status,
        "code": error.code,
    }
    document["detail"] = error.message
    if error.fields:
        document["errors"] = [{"field": one.field, "message": one.message} for one in error.fields]
    return status, document
