"""The REST interface as data: which request asks for what, and what an answer means. No IO."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from client.wherry import models
from client.wherry.effects import Body, Request, Response
from client.wherry.errors import FieldProblem, WherryError

T = TypeVar("T")

EVENT_STREAM = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
#: Silence on an event stream after which it counts as broken; servers send a comment every few seconds.
STREAM_SILENCE_S = 45.0
#: A node that is asked what a running job has left so far may take its time.
LOOK_S = 150.0
_RETRYABLE = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
#: What wherry answers when somebody else has failed, and would at once again.
_FINAL = frozenset({"registry_failed", "model_failed", "answer_too_large", "replicas_fail"})


# --- answers -----------------------------------------------------------------------------------------------------


def problem(status: int, headers: Mapping[str, str], body: bytes) -> WherryError | None:
    """Return the error that an answer is, or None. Understands RFC 9457 and anything a proxy may say instead."""
    if status < HTTPStatus.BAD_REQUEST:
        return None
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {}
    phrase = _phrase(status)
    detail = document.get("detail") or document.get("title") or f"the server answered {status} {phrase}"
    return WherryError(
        str(document.get("code") or phrase.lower().replace(" ", "_")),
        detail if isinstance(detail, str) else json.dumps(detail),
        status=status,
        fields=_fields(document),
        retryable=(status in _RETRYABLE and document.get("code") not in _FINAL) or document.get("retryable") is True,
        retry_after_s=_seconds(headers.get("retry-after")),
    )


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "error"


def _fields(document: dict[str, Any]) -> tuple[FieldProblem, ...]:
    given = document.get("fields") or document.get("errors") or ()
    if not isinstance(given, list):
        return ()
    return tuple(
        FieldProblem(str(item.get("field", "")), str(item.get("message", "")))
        for item in given
        if isinstance(item, dict)
    )


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text or ""))
    except ValueError:
        return None


def parse(kind: type[T], answer: Response) -> T:
    """Return the JSON of *answer* as a *kind*.

    Raises:
        WherryError: it is something else (code ``bad_answer``).

    """
    try:
        return TypeAdapter(kind).validate_json(answer.body)
    except ValidationError as error:
        raise WherryError(
            "bad_answer",
            "the server's answer was not understood: is this a wherry server, and is this client as new as it is?",
            status=answer.status,
        ) from error


def listed(kind: type[T], key: str, answer: Response) -> list[T]:
    """Return the list under *key* of a JSON answer.

    Raises:
        WherryError: it is something else (code ``bad_answer``).

    """
    found = parse(dict[str, Any], answer).get(key, [])
    return parse(list[kind], Response(answer.status, answer.headers, json.dumps(found).encode()))


_STREAMS = {"o": "stdout", "e": "stderr"}
_OUTPUT: Mapping[str, type[models.JobOutput]] = {
    "log": models.LogLine,
    "progress": models.Progress,
    "metric": models.Metric,
    "gap": models.Gap,
    "end": models.End,
}


def job_output(event: str, data: str) -> models.JobOutput | None:
    """Return what an event of a followed log says; None for kinds that this version does not know."""
    kind = _OUTPUT.get(event)
    if kind is None:
        return None
    try:
        item = kind.model_validate_json(data or "{}")
    except ValidationError:
        return None
    if isinstance(item, models.LogLine):
        return item.model_copy(update={"stream": _STREAMS.get(item.stream, item.stream)})
    return item


def ended(event: Mapping[str, Any]) -> bool:
    """Return whether a CloudEvent tells of a job's end."""
    parts = str(event.get("type", "")).split(".")
    return len(parts) > 3 and parts[2] == "job" and parts[3] in models.TERMINAL


# --- requests ----------------------------------------------------------------------------------------------------


def login(user: str, password: str) -> Request:
    """Ask for a session token."""
    return Request("POST", "/login", json={"user": user, "password": password})


def logout() -> Request:
    """End the session."""
    return Request("DELETE", "/logout")


def whoami() -> Request:
    """Ask whom the token belongs to."""
    return Request("GET", "/users/me")


def simple(path: str) -> Request:
    """Ask for what is at *path*."""
    return Request("GET", path)


def node(node: str) -> Request:
    """Ask for a machine."""
    return Request("GET", f"/nodes/{segment(node)}")


def node_metrics(node: str, names: Sequence[str], since: datetime | None, points: int) -> Request:
    """Ask for what a machine has used over time."""
    query: dict[str, str | list[str]] = {"points": str(points)} | ({"name": list(names)} if names else {})
    if since is not None:
        query["since"] = since.isoformat()
    return Request("GET", f"/nodes/{segment(node)}/metrics", query=query)


def node_order(node: str, verb: str, order: Mapping[str, Any]) -> Request:
    """Ask for a machine to be drained, undrained or cordoned, or to bring something."""
    given = {name: value for name, value in order.items() if value is not None}
    return Request("POST", f"/nodes/{segment(node)}/{verb}", json=given)


def forget_node(node: str, reason: str, *, force: bool) -> Request:
    """Ask for a machine to be forgotten."""
    query = ({"reason": reason} if reason else {}) | ({"force": "true"} if force else {})
    return Request("DELETE", f"/nodes/{segment(node)}", query=query)


def plan(spec: Mapping[str, Any]) -> Request:
    """Ask where a job would go."""
    return Request("POST", "/jobs/plan", json=dict(spec))


def quota(user: str, method: str = "GET", limits: Mapping[str, Any] | None = None) -> Request:
    """Ask for a user's quota, or set or remove it."""
    return Request(method, f"/users/{segment(user)}/quota", json=None if limits is None else dict(limits))


def replay(letter_id: str) -> Request:
    """Ask for a dead letter to be handed to its reader again."""
    return Request("POST", f"/dead-letters/{segment(letter_id)}/replay")


def submit(spec: Mapping[str, Any], key: str, body: Body | None) -> Request:
    """Hand in a job; the key makes it safe to repeat."""
    headers = {"Idempotency-Key": key}
    return Request("POST", "/jobs", headers=headers, json=None if body else dict(spec), body=body)


def page(path: str, filters: Mapping[str, str | Sequence[str] | None], cursor: str | None, limit: int) -> Request:
    """Ask for a page of a list: at most *limit* behind *cursor*. A filter that is empty says nothing."""
    given = {**filters, "limit": str(limit), "cursor": cursor}
    query = {name: value if isinstance(value, str) else list(value) for name, value in given.items() if value}
    return Request("GET", path, query=query)


def job(job_id: str, below: str = "") -> Request:
    """Ask for a job, or for what lies below it."""
    return Request("GET", f"/jobs/{segment(job_id)}{below}")


def cancel(job_id: str) -> Request:
    """Ask for a job to stop."""
    return Request("POST", f"/jobs/{segment(job_id)}/cancel")


@dataclass(frozen=True, slots=True)
class LogChoice:
    """Which lines of a log: of one stream, the last `tail`, from a line's number or a time on, of one attempt."""

    stream: str | None = None
    tail: int | None = None
    since: datetime | int | None = None
    attempt: int | None = None

    def query(self) -> dict[str, str | list[str]]:
        """Return it as the server takes it."""
        since = self.since.astimezone(UTC).isoformat() if isinstance(self.since, datetime) else self.since
        given = {"stream": self.stream, "tail": self.tail, "since": since, "attempt": self.attempt}
        return {name: str(value) for name, value in given.items() if value is not None}


def logs(job_id: str, choice: LogChoice) -> Request:
    """Ask for a log as text."""
    return Request("GET", f"/jobs/{segment(job_id)}/logs", query=choice.query(), headers={"Accept": "text/plain"})


def follow(job_id: str, choice: LogChoice, last_event_id: str) -> Request:
    """Ask for a log as it grows, after the event last seen."""
    headers = EVENT_STREAM | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    query = choice.query() | {"follow": "true"}
    return Request(
        "GET", f"/jobs/{segment(job_id)}/logs", query=query, headers=headers, read_timeout_s=STREAM_SILENCE_S
    )


def metrics(job_id: str, names: Sequence[str], attempt: int | None, points: int) -> Request:
    """Ask for what an attempt measured, with at most so many points of each series."""
    query: dict[str, str | list[str]] = {"points": str(points)}
    if names:
        query["name"] = list(names)
    if attempt is not None:
        query["attempt"] = str(attempt)
    return Request("GET", f"/jobs/{segment(job_id)}/metrics", query=query)


def watch(job_id: str, silence_s: float) -> Request:
    """Ask for a job's events as they happen."""
    return Request("GET", f"/jobs/{segment(job_id)}/events", headers=EVENT_STREAM, read_timeout_s=silence_s)


def events(job_id: str, after: int) -> Request:
    """Ask for a page of a job's events, after a place in the log."""
    return Request("GET", f"/jobs/{segment(job_id)}/events", query={"after": str(after), "limit": "1000"})


def outputs(job_id: str, cursor: str | None, live: str | None = None, path: str | None = None) -> Request:
    """Ask for a page of what a job left; with *live* (``true``, or a look's id) of what it has left so far."""
    given = {"list": "true", "cursor": cursor, "live": live, "path": path}
    query: dict[str, str | list[str]] = {name: value for name, value in given.items() if value}
    where = f"/jobs/{segment(job_id)}/outputs"
    return Request("GET", where, query=query, read_timeout_s=LOOK_S if live else None)


def output(job_id: str, path: str, start: int, look: str | None = None) -> Request:
    """Ask for one file of a job, or of a look at it, from byte *start* on."""
    request = download(f"/jobs/{segment(job_id)}/outputs/{quote(path, safe='/')}", start)
    return replace(request, query={"live": look}) if look else request


def retention(limit: int, *, dry_run: bool) -> Request:
    """Ask for a retention run."""
    return Request("POST", "/retention/run", query={"dry_run": str(dry_run).lower(), "limit": str(limit)})


def retention_run(run_id: str) -> Request:
    """Ask how far a retention run is."""
    return Request("GET", f"/retention/runs/{segment(run_id)}")


def artifact(artifact_id: str, start: int) -> Request:
    """Ask for an artifact's bytes, from byte *start* on."""
    return download(f"/artifacts/{segment(artifact_id)}", start)


def put_artifact(body: Body, name: str) -> Request:
    """Store bytes."""
    return Request("PUT", "/artifacts", query={"name": name} if name else {}, body=body)


def delete_artifact(artifact_id: str) -> Request:
    """Remove an artifact."""
    return Request("DELETE", f"/artifacts/{segment(artifact_id)}")


TUS_MEDIA_TYPE = "application/offset+octet-stream"
_TUS = {"Tus-Resumable": "1.0.0"}


def create_upload(size: int, metadata: str) -> Request:
    """Begin an upload that resumes. One that was begun twice leaves an empty one behind, which the server collects."""
    headers = _TUS | {"Upload-Length": str(size)} | ({"Upload-Metadata": metadata} if metadata else {})
    return Request("POST", "/uploads", headers=headers)


def upload(upload_id: str) -> Request:
    """Ask how far an upload has come."""
    return Request("HEAD", f"/uploads/{segment(upload_id)}", headers=_TUS)


def continue_upload(upload_id: str, offset: int, body: Body) -> Request:
    """Send an upload's bytes from *offset* on."""
    headers = _TUS | {"Upload-Offset": str(offset)}
    return Request("PATCH", f"/uploads/{segment(upload_id)}", headers=headers, body=body, repeatable=False)


def download(path: str, start: int) -> Request:
    """Ask for stored bytes from byte *start* on."""
    headers = {"Accept": "*/*", "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    return Request("GET", path, headers=headers)


def segment(text: str) -> str:
    """Return *text* as one segment of a path: nothing that a user types may lead elsewhere.

    Raises:
        WherryError: it can be the name of nothing (code ``not_found``).

    """
    if text in ("", ".", ".."):
        raise WherryError("not_found", f"{text!r} is not the name of anything")
    return quote(text, safe="@")
