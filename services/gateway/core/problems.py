"""Errors as RFC 9457 problem documents: our codes, their statuses, and which fields are at fault."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from shared.errors import FieldProblem, WherryError

MEDIA_TYPE = "application/problem+json"

#: Status and title of every code that a client may see. A code that is not here is our own fault: 500.
_KNOWN: Mapping[str, tuple[int, str]] = {
    "invalid": (422, "The request is not valid"),
    "invalid_json": (400, "The body is not JSON"),
    "bad_request": (400, "The request cannot be read"),
    "bad_form": (400, "The form cannot be read"),
    "bad_source": (422, "The source is not usable"),
    "unauthenticated": (401, "Who are you?"),
    "forbidden": (403, "Not allowed"),
    "forbidden_address": (403, "Not an address of yours"),
    "not_found": (404, "Not found"),
    "method_not_allowed": (405, "Method not allowed"),
    "too_slow": (408, "Too slow"),
    "conflict": (409, "Conflict"),
    "idempotency_conflict": (409, "The key belongs to another request"),
    "name_taken": (409, "The name is taken"),
    "dataset_in_use": (409, "The dataset is in use"),
    "too_many_versions": (409, "Too many versions"),
    "not_a_file": (422, "Not a file"),
    "not_ended": (409, "The job has not ended"),
    "not_running": (409, "The job does not run"),
    "closed": (409, "It is closed"),
    "not_ready": (409, "It is not ready"),
    "item_failed": (409, "It has failed"),
    "not_an_image": (422, "Not an image"),
    "offset_mismatch": (409, "The upload stands somewhere else"),
    "in_use": (409, "Something needs it"),
    "own_account": (409, "That is your own account"),
    "upload_ended": (410, "The upload has ended"),
    "tus_version": (412, "Another version of tus"),
    "too_large": (413, "Too large"),
    "unsupported_media_type": (415, "Unsupported media type"),
    "range_not_satisfiable": (416, "Range not satisfiable"),
    "throttled": (429, "Too many requests"),
    "quota_queued": (429, "Too many jobs wait"),
    "uploads_open": (429, "Too many uploads are not ended"),
    "checksum_mismatch": (460, "Checksum mismatch"),
    "internal": (500, "Internal error"),
    "corrupt": (500, "Stored data is damaged"),
    "bus_forbidden": (500, "Internal error"),
    "registry_failed": (502, "The registry could not be read"),
    "registry_refused": (422, "Not a registry that may be asked"),
    "model_refused": (422, "The model does not take it"),
    "model_failed": (502, "The model failed"),
    "replica_lost": (502, "The answer was lost"),
    "answer_too_large": (502, "The answer is too large"),
    "replica_timeout": (504, "No answer in time"),
    "busy": (503, "Busy"),
    "unavailable": (503, "Not available right now"),
    "replicas_fail": (503, "Its replicas fail"),
}
_CODE_OF_STATUS: Mapping[int, str] = {
    400: "bad_request", 401: "unauthenticated", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    409: "conflict", 413: "too_large", 415: "unsupported_media_type", 416: "range_not_satisfiable", 422: "invalid",
    429: "throttled", 503: "unavailable",
}  # fmt: skip
#: The web framework's own words, which say nothing, and ours.
_OF_FRAMEWORK: Mapping[tuple[int, str], str] = {
    (404, "Not Found"): "There is nothing at this address; /openapi.json lists what there is.",
    (405, "Method Not Allowed"): "This address does not take this method; /openapi.json lists what it takes.",
}
#: Pydantic puts the branch of a union into an error's place: noise to a user.
_UNION_BRANCH = re.compile(r"^(constrained-\w+|str|int|float|bool|\[key\]|(tuple|list|dict)\[.*\]|function-.*)$")
#: Sentences for checks whose own words are written for programmers.
_PLAIN = {
    "extra_forbidden": "There is no such field",
    "missing": "This field is required",
    "string_type": "Give text here",
    "tuple_type": "Give a list here",
    "model_type": "Give an object here",
    "dict_type": "Give an object here",
}


#: What people call the form that a pattern has, by a part of it that no other pattern has.
_FORMS: Mapping[str, str] = {
    "^(job:j": "job:ID, job:ID/PATH, artifact:ID, dataset:NAME, dataset:NAME@VERSION or https://HOST/PATH",
    "^https?://": "https://HOST/PATH",
    "+@[^": "name@example.org",
    "^[a-zA-Z0-9][a-zA-Z0-9._/:@-]*$": "NAME, NAME:TAG, REGISTRY/NAME:TAG or NAME@sha256:DIGEST",
    "^[A-Za-z0-9][A-Za-z0-9._-]{": "a name of letters, digits and . _ -, which begins with a letter or digit",
    "^[a-z0-9][a-z0-9._-]{0,127}(@": "NAME or NAME@VERSION, in small letters",
    "^[a-z0-9][a-z0-9._-]{0,127}$": "a name of small letters, digits and . _ -, which begins with a letter or digit",
    "^a[a-z2-7]{25}$": "an artifact's id: a and 25 small letters or digits",
    "^j[a-z2-7]{25}$": "a job's id: j and 25 small letters or digits",
    "^[^\\x00-\\x1f\\x7f]": "one line of text",
    "^[^\\x00]*$": "text without null characters",
}


class ProblemField(BaseModel):
    """What is wrong with one field. `field` is a dotted path into the request."""

    field: str
    message: str


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[ProblemField] = []
    request_id: str | None = None


def problem(error: WherryError, request_id: str | None = None) -> Problem:
    """Return the document for *error*. What a caller cannot know nor mend is not described."""
    code = error.code if error.code in _KNOWN else "internal"
    status, title = _KNOWN[code]
    detail = error.message if status != 500 else "Something went wrong here. It is logged under this request's id."
    fields = [ProblemField(field=item.field, message=item.message) for item in error.fields]
    return Problem(
        type=f"urn:wherry:problem:{code.replace('_', '-')}",
        title=title, status=status, detail=detail, code=code, errors=fields, request_id=request_id,
    )  # fmt: skip


def status_of_code(code: str) -> int:
    """Return the HTTP status of *code*.

    Raises:
        KeyError: no client may see such a code.
    """
    return _KNOWN[code][0]


def title_of_code(code: str) -> str:
    """Return in a few words what *code* says.

    Raises:
        KeyError: no client may see such a code.
    """
    return _KNOWN[code][1]


def status_of(error: WherryError) -> int:
    """Return the HTTP status of *error*."""
    return _KNOWN.get(error.code, _KNOWN["internal"])[0]


def retry_after_s(error: WherryError) -> int | None:
    """Return how many seconds to wait before the same request may succeed, or None if waiting does not help."""
    return 1 if error.code == "not_ready" else {429: 10, 503: 2}.get(status_of(error))


def from_status(status: int, detail: str) -> WherryError:
    """Return the error for an HTTP status that the web framework came up with."""
    code = _CODE_OF_STATUS.get(status, "internal" if status >= 500 else "bad_request")
    return WherryError(code, _OF_FRAMEWORK.get((status, detail), detail))


def from_validation(error: ValidationError, model: type[BaseModel] | None = None) -> WherryError:
    """Return the error for a body that is no JSON (400, with the position) or not what it should be (422)."""
    found = error.errors(include_url=False, include_input=False)
    if found and found[0]["type"] == "json_invalid":
        return WherryError("invalid_json", f"{found[0]['msg']}. The body is to be one JSON object.")
    return invalid(fields_at_fault(found, model))


def invalid(fields: Iterable[FieldProblem]) -> WherryError:
    """Return the 422 that names *fields*."""
    fields = tuple(fields)
    sentences = "; ".join(f"{item.field}: {item.message}" if item.field else item.message for item in fields[:5])
    ended = sentences if sentences.endswith("?") else f"{sentences}."
    return WherryError("invalid", ended if sentences else "The request is not valid.", fields=fields)


def fields_at_fault(
    found: Iterable[Mapping[str, Any]], model: type[BaseModel] | None = None
) -> tuple[FieldProblem, ...]:
    """Return Pydantic's errors as one sentence for each field, in order, without its inner words."""
    sentences: dict[str, list[str]] = {}
    for item in found:
        field = ".".join(str(part) for part in item["loc"] if not _UNION_BRANCH.match(str(part)))
        text = _sentence(item) + _suggestion(item, model)
        if text not in sentences.setdefault(field, []):
            sentences[field].append(text)
    return tuple(FieldProblem(field=field, message=", or: ".join(texts)) for field, texts in sentences.items())


def _sentence(item: Mapping[str, Any]) -> str:
    if item["type"] == "string_pattern_mismatch":
        pattern = item["ctx"]["pattern"]
        return f"This is not of the form {next((form for like, form in _FORMS.items() if like in pattern), pattern)}"
    return _PLAIN.get(item["type"]) or str(item["msg"]).removeprefix("Value error, ")


def _suggestion(item: Mapping[str, Any], model: type[BaseModel] | None) -> str:
    """Return which field was probably meant, for a top-level one that does not exist."""
    if item["type"] != "extra_forbidden" or model is None or len(item["loc"]) != 1:
        return ""
    near = difflib.get_close_matches(str(item["loc"][0]), model.model_fields, n=1)
    return f"; did you mean {near[0]}?" if near else ""
