"""Which problems each operation may be answered with: the part of the OpenAPI document that tells of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from services.gateway.core import problems

_JSON, _FORM = "application/json", "multipart/form-data"
_PROBLEM = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}

_JOB = "invalid conflict idempotency_conflict forbidden_address quota_queued"
_FORM_OF_BYTES = "bad_form too_slow"
_FILE = "range_not_satisfiable busy corrupt"
_ITEM = "conflict not_ready item_failed"
_ASKED = (
    "not_running replica_lost replica_timeout model_failed answer_too_large model_refused registry_failed "
    "bad_form not_an_image busy replicas_fail"
)
_PASSED = "not_running replica_lost replica_timeout model_failed answer_too_large too_large busy replicas_fail"
_TUS = "tus_version bad_request"

#: What may come beside `_usual`.
_ALSO: Mapping[str, str] = {
    "POST /v1/jobs": f"{_JOB} {_FORM_OF_BYTES} bad_source",
    "GET /v1/jobs": "forbidden not_found",
    "POST /v1/jobs/batch": "",
    "POST /v1/jobs/plan": f"{_FORM_OF_BYTES} bad_source forbidden_address",
    "POST /v1/jobs/{job_id}/rerun": f"{_JOB} not_ended bad_source",
    "GET /v1/login": "throttled",
    "POST /v1/login": "throttled",
    "GET /v1/jobs/{job_id}/logs": "busy",
    "GET /v1/jobs/{job_id}/events": "busy",
    "GET /v1/events": "busy",
    "PUT /v1/artifacts": "too_large too_slow busy",
    "DELETE /v1/artifacts/{artifact_id}": "in_use",
    "GET /v1/artifacts/{artifact_id}": _FILE,
    "GET /v1/jobs/{job_id}/outputs": "not_ended not_running busy corrupt conflict",
    "GET /v1/jobs/{job_id}/outputs/{path}": f"{_FILE} not_ended not_running invalid",
    "DELETE /v1/nodes/{node}": "forbidden conflict",
    "POST /v1/nodes/{node}/drain": "forbidden",
    "POST /v1/nodes/{node}/undrain": "forbidden",
    "POST /v1/nodes/{node}/cordon": "forbidden",
    "POST /v1/nodes/{node}/prefetch": "forbidden",
    "GET /v1/users": "forbidden",
    "POST /v1/users": "forbidden conflict",
    "PATCH /v1/users/{name}": "forbidden own_account",
    "DELETE /v1/users/{name}": "forbidden own_account",
    "POST /v1/password": "throttled",
    "PUT /v1/users/{name}/quota": "forbidden",
    "GET /v1/users/{name}/quota": "forbidden",
    "DELETE /v1/users/{name}/quota": "forbidden",
    "POST /v1/uploads": f"{_TUS} unsupported_media_type too_large too_slow uploads_open offset_mismatch",
    "HEAD /v1/uploads/{upload_id}": "tus_version upload_ended",
    "GET /v1/uploads/{upload_id}": "upload_ended",
    "PATCH /v1/uploads/{upload_id}": (
        f"{_TUS} unsupported_media_type too_large too_slow offset_mismatch checksum_mismatch upload_ended"
    ),
    "DELETE /v1/uploads/{upload_id}": "tus_version upload_ended",
    "POST /v1/datasets": (
        f"{_FORM_OF_BYTES} name_taken too_many_versions not_a_file not_ended not_found conflict forbidden"
    ),
    "GET /v1/datasets/{ref}/content": _FILE,
    "PATCH /v1/datasets/{name}": "forbidden conflict",
    "DELETE /v1/datasets/{ref}": "forbidden dataset_in_use conflict",
    "GET /v1/dead-letters": "forbidden",
    "POST /v1/dead-letters/{letter_id}/replay": "forbidden conflict",
    "POST /v1/retention/run": "forbidden conflict",
    "GET /v1/retention/runs/{run_id}": "forbidden",
    "POST /v1/trainings": f"{_JOB} not_found",
    "DELETE /v1/trainings/{training_id}": "",
    "POST /v1/models": (
        "forbidden name_taken not_found not_ended registry_refused registry_failed too_many_versions conflict"
    ),
    "POST /v1/models/sync": "forbidden registry_refused registry_failed busy conflict",
    "GET /v1/models/sync/{run_id}": "forbidden",
    "PATCH /v1/models/{name}": "forbidden",
    "DELETE /v1/models/{ref}": "forbidden conflict",
    "POST /v1/models/{ref}/runs": _JOB,
    "POST /v1/models/{name}/evaluations": "forbidden",
    "POST /v1/models/{name}/fine-tune-requests": "forbidden",
    "GET /v1/models/{name}/fine-tune-requests": "forbidden",
    "POST /v1/models/{name}/fine-tune-requests/{request_id}/decline": "forbidden conflict",
    "POST /v1/jobs/{job_id}/items": "closed conflict idempotency_conflict",
    "GET /v1/jobs/{job_id}/items": "conflict",
    "POST /v1/jobs/{job_id}/items/retry": "closed conflict",
    "POST /v1/jobs/{job_id}/close": "conflict",
    "GET /v1/jobs/{job_id}/items/{item_id}": "conflict",
    "GET /v1/jobs/{job_id}/items/{item_id}/original": f"{_FILE} conflict",
    "GET /v1/jobs/{job_id}/items/{item_id}/files/{path}": f"{_FILE} {_ITEM}",
    "POST /v1/workloads": f"{_JOB} unsupported_media_type",
    "POST /v1/images": f"{_FORM_OF_BYTES} not_an_image not_found unsupported_media_type closed conflict",
    "GET /v1/images/{image_id}": f"{_FILE} {_ITEM}",
    "POST /v1/workloads/{workload_id}/rerun": f"{_JOB} closed",
    "GET /v1/workloads/{workload_id}/results": "busy corrupt",
    "POST /v1/deployments": f"{_JOB} bad_source name_taken not_found",
    "PATCH /v1/deployments/{deployment}": "bad_source not_running conflict",
    "POST /v1/deployments/{deployment}/predict": _ASKED,
    "POST /v1/predict": f"{_JOB} {_ASKED} bad_source name_taken not_found",
    "POST /v1/deployments/{deployment}/v1/{path}": _PASSED,
    "GET /v1/deployments/{deployment}/v1/{path}": _PASSED,
    "POST /v1/deployments/{deployment}/v2/{path}": _PASSED,
    "GET /v1/deployments/{deployment}/v2/{path}": _PASSED,
    "POST /v2/models/{model}/{path}": _PASSED,
    "GET /v2/models/{model}/{path}": _PASSED,
    "GET /v2/models/{model}": _PASSED,
    "GET /readyz": "unavailable",
    "GET /v2/health/ready": "unavailable",
}


def describe(document: dict[str, Any]) -> None:
    """Add to an OpenAPI document with which problems each operation may be answered, by status and code.

    Raises:
        KeyError: an operation is named here that there is not.
    """
    named = {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    if unknown := set(_ALSO) - set(named):
        raise KeyError(f"there is no operation {min(unknown)}")
    for name, operation in named.items():
        describe_one(name, operation, secured=bool(document["security"]))


def describe_one(name: str, operation: dict[str, Any], *, secured: bool) -> None:
    """Add the problems of one operation, called as ``POST /v1/jobs``; *secured*: unless it says otherwise."""
    responses: dict[str, Any] = operation["responses"]
    responses.pop("422", None)  # the framework's own
    codes = {*_usual(name, operation, secured=secured), *_ALSO.get(name, "").split()}
    for status, answer in _answers(codes):
        content = responses.get(status, {}).get("content", {})
        responses[status] = {**answer, "content": {**content, **_PROBLEM}}
    responses["default"] = {"description": "A problem document.", "content": _PROBLEM}


def _usual(name: str, operation: Mapping[str, Any], *, secured: bool) -> Iterator[str]:
    """Give the codes that an operation has for what it takes."""
    if operation.get("security", secured):
        yield "unauthenticated"
        yield "unavailable"
    if "{" in name:
        yield "not_found"
    if any(one["in"] == "query" or "key" in one["name"].lower() for one in operation.get("parameters", [])):
        yield "invalid"
    kinds = operation.get("requestBody", {}).get("content", {})
    if _JSON in kinds or _FORM in kinds:
        yield from ("invalid", "too_large")
    if _JSON in kinds:
        yield "invalid_json"
    if _FORM in kinds:
        yield "bad_form"


def _answers(codes: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    by_status: dict[int, list[str]] = {}
    for code in sorted(codes):
        by_status.setdefault(problems.status_of_code(code), []).append(code)
    for status, found in sorted(by_status.items()):
        titles = "; ".join(f"`{code}`: {problems.title_of_code(code)}" for code in found)
        yield str(status), {"description": f"{titles}.", "x-codes": found}
