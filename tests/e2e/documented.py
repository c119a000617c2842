"""A user of the REST interface who takes its OpenAPI document at its word: every answer is held against it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema_rs

from tests.e2e.stack import until

JSON, PROBLEM, FORM = "application/json", "application/problem+json", "multipart/form-data"
_METHODS = ("get", "put", "post", "delete", "patch", "head", "options")
#: Paths below a deployment are its program's, which answers what it likes.
_OF_PROGRAMS = re.compile(r"\{(deployment|model)\}/.*\{path\}$")
_ID = re.compile(r"^[a-z][a-z2-7]{25}$")
_NOWHERE = "there-is-none"


class Document:
    """The OpenAPI document of a gateway. An operation is called as ``POST /v1/jobs``."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._components: Mapping[str, Any] = document["components"]
        self._security: Sequence[Mapping[str, Any]] = document["security"]
        self._validators: dict[str, jsonschema_rs.Draft202012Validator] = {}
        self.operations: dict[str, Mapping[str, Any]] = {
            f"{method.upper()} {path}": operation
            for path, operations in document["paths"].items()
            for method, operation in operations.items()
            if method in _METHODS
        }

    def needs_token(self, operation: str) -> bool:
        """Whether nothing of it is for people who have not logged in."""
        ways = self.operations[operation].get("security", self._security)
        return bool(ways) and all("bearer" in way for way in ways)

    def may_be_forbidden(self, operation: str) -> bool:
        """Whether some people are told that it is not for them."""
        return "forbidden" in self.operations[operation]["responses"].get("403", {}).get("x-codes", [])

    def flags(self, operation: str) -> list[str]:
        """Return the parameters of its query that are no word: numbers, yes or no, and of mere lists the place."""
        found = [one for one in self.operations[operation].get("parameters", []) if one["in"] == "query"]
        answer = self.operations[operation]["responses"].get("200", {})
        places = {"cursor"} if set(answer.get("content", {})) == {JSON} else set()
        wanted = {"integer", "boolean"}
        return [one["name"] for one in found if one["schema"].get("type") in wanted or one["name"] in places]

    def bodies(self, operation: str) -> Mapping[str, Any]:
        """Return what may be sent to it, by media type."""
        return self.operations[operation].get("requestBody", {}).get("content", {})

    def is_closed(self, operation: str) -> bool:
        """Whether its JSON body may have no fields but those that are described."""
        schema: Mapping[str, Any] = self.bodies(operation)[JSON]["schema"]
        name = schema.get("$ref", "").rpartition("/")[2]
        return (self._components["schemas"][name] if name else schema).get("additionalProperties") is False

    def faults_of_body(self, operation: str, body: Any) -> list[str]:
        """Return in what a JSON body is not as described."""
        kind = self.bodies(operation).get(JSON)
        return [] if kind is None else list(self._off_schema(kind["schema"], body))

    def faults(self, operation: str, answer: httpx.Response) -> list[str]:
        """Return in what an answer is not as described."""
        described = self.operations[operation]["responses"].get(str(answer.status_code))
        if described is None:
            return [f"status {answer.status_code} is not described: {answer.text[:300]}"]
        if not answer.content:
            return []
        kind = answer.headers.get("content-type", "").partition(";")[0]
        kinds: Mapping[str, Any] = {name.partition(";")[0]: one for name, one in described.get("content", {}).items()}
        if (found := kinds.get(kind) or kinds.get("*/*")) is None:
            return [f"{answer.status_code} as {kind} is not described, only as {sorted(kinds)}"]
        if kind not in {JSON, PROBLEM} or "*/*" in kinds:
            return []
        if not found.get("schema"):
            return [f"the JSON of {answer.status_code} is not described"]
        codes = described.get("x-codes", [])
        code = answer.json().get("code") if kind == PROBLEM else None
        wrong = [f"{answer.status_code} {code} is not described, only {codes}"] if code and code not in codes else []
        return [*wrong, *self._off_schema(found["schema"], answer.json())]

    def _off_schema(self, schema: Mapping[str, Any], body: Any) -> Iterator[str]:
        key = repr(schema)
        if key not in self._validators:
            whole = {**schema, "components": self._components}
            self._validators[key] = jsonschema_rs.Draft202012Validator(whole, validate_formats=True)
        for error in self._validators[key].iter_errors(body):
            yield f"{'.'.join(map(str, error.instance_path))}: {error.message}"


@dataclass(frozen=True)
class Asked:
    """A request that was answered well: what stood in its path, and what was sent."""

    names: tuple[str, ...]
    sent: Mapping[str, Any]


class User:
    """Somebody with a token. What is answered well is remembered, to be asked again in wrong ways."""

    def __init__(self, url: str, token: str) -> None:
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=90)
        self.stranger = httpx.Client(base_url=url, timeout=30)
        self.document = Document(self.stranger.get("/openapi.json").raise_for_status().json())
        self.answered: dict[str, Asked] = {}

    def close(self) -> None:
        """Leave."""
        self.http.close()
        self.stranger.close()

    def ask(self, operation: str, *names: str, status: int | None = None, **sent: Any) -> httpx.Response:
        """Return the answer, which is as described.

        Args:
            operation: as ``GET /v1/jobs/{job_id}``.
            names: what stands in its path.
            status: what is expected; else any good one.
            sent: as for `httpx.Client.request`.
        """
        answer = until(lambda: self._answer(operation, names, sent), f"{operation} is there")
        assert self.document.faults(operation, answer) == [], f"{operation}: {answer.status_code} {answer.text[:500]}"
        assert answer.is_success if status is None else answer.status_code == status, f"{operation}: {answer.text}"
        if answer.is_success:
            self.answered.setdefault(operation, Asked(names, sent))
            assert "json" not in sent or self.document.faults_of_body(operation, sent["json"]) == [], operation
        return answer

    def _answer(self, operation: str, names: Sequence[str], sent: Mapping[str, Any]) -> httpx.Response | None:
        """Return the answer; nothing while a service begins anew that was ended in the test before."""
        method, path = filled(operation, names)
        answer = self.http.request(method, path, **sent)
        return None if answer.status_code == 503 else answer

    # --- the same, asked in wrong ways -------------------------------------------------------------------------

    def refused_to_strangers(self, operation: str) -> None:
        """Ask without a token, and with one that nobody was given."""
        method, path = filled(operation, [_NOWHERE] * operation.count("{"))
        for headers in ({}, {"Authorization": "Bearer whr_s_nobody"}):
            answer = self.stranger.request(method, path, headers=headers | TUS)
            self.is_problem(operation, answer, 401, "unauthenticated")
            assert answer.headers["www-authenticate"], f"{operation} does not say how to log in"

    def refused_to_others(self, operation: str, token: str) -> None:
        """Ask for the same with the token of a user who is no administrator and has nothing to do with it."""
        asked = self.answered[operation]
        method, path = filled(operation, asked.names)
        headers = {**asked.sent.get("headers", {}), "Authorization": f"Bearer {token}"}
        sent: dict[str, Any] = {**asked.sent, "headers": headers}
        answer = self.stranger.request(method, path, **sent)
        # 410: of an upload that has ended nothing is told, to who knows its id.
        assert answer.status_code in {403, 404, 410}, f"{operation}: {answer.status_code} {answer.text[:500]}"
        assert self.document.faults(operation, answer) == [], f"{operation}: {answer.text[:500]}"

    def unknown_is_told(self, operation: str) -> None:
        """Ask for what is not there, for each name in the path: by a name, and by an id that nobody was given."""
        asked = self.answered[operation]
        hidden = 1 if _OF_PROGRAMS.search(operation) else 0
        for at, name in enumerate(asked.names[: len(asked.names) - hidden]):
            for unknown in unknown_names(name):
                names = (*asked.names[:at], unknown, *asked.names[at + 1 :])
                answer = self._answer(operation, names, asked.sent)
                assert answer is not None, f"{operation} is not there"
                self.is_problem(operation, answer, 404, "not_found")

    def wrong_query_is_named(self, operation: str) -> None:
        """Give a word where none may be."""
        asked = self.answered[operation]
        for name in self.document.flags(operation):
            sent = {**asked.sent, "params": {**asked.sent.get("params", {}), name: "some"}}
            answer = self._answer(operation, asked.names, sent)
            assert answer is not None, f"{operation} is not there"
            assert name in fields(self.is_problem(operation, answer, 422, "invalid")), answer.text

    def wrong_body_is_named(self, operation: str) -> None:
        """Send half a document, a list, and a field that there is not; a form without its boundary."""
        kinds = self.document.bodies(operation)
        if JSON in kinds:
            self.is_problem(operation, self._sent(operation, b'{"a": '), 400, "invalid_json")
            assert fields(self.is_problem(operation, self._sent(operation, b"[]"), 422, "invalid")), operation
            told = fields(self.is_problem(operation, self._sent(operation, b'{"no_such_field": 1}'), 422, "invalid"))
            assert "no_such_field" in told or not self.document.is_closed(operation), f"{operation}: {told}"
        if FORM in kinds:
            self.is_problem(operation, self._sent(operation, b"--x", FORM), 400, "bad_form")

    def _sent(self, operation: str, body: bytes, kind: str = JSON) -> httpx.Response:
        asked = self.answered[operation]
        headers = {**asked.sent.get("headers", {}), "Content-Type": kind}
        answer = self._answer(operation, asked.names, {"content": body, "headers": headers})
        assert answer is not None, f"{operation} is not there"
        return answer

    def is_problem(self, operation: str, answer: httpx.Response, status: int, code: str) -> Mapping[str, Any]:
        """Return the problem document that the answer is, as described and with something to go on."""
        assert answer.status_code == status, f"{operation}: {answer.status_code} {answer.text[:500]}"
        assert self.document.faults(operation, answer) == [], f"{operation}: {answer.text[:500]}"
        if operation.startswith("HEAD "):
            return {}
        assert answer.headers["content-type"] == PROBLEM, f"{operation}: {answer.headers['content-type']}"
        body = answer.json()
        assert (body["status"], body["code"]) == (status, code), f"{operation}: {body}"
        assert len(body["detail"].split()) > 3, f"{operation} says no more than {body['detail']!r}"
        return body


#: Resumable uploads want the version of their protocol with every request; it does no harm elsewhere.
TUS = {"Tus-Resumable": "1.0.0"}


def filled(operation: str, names: Sequence[str]) -> tuple[str, str]:
    """Return an operation's method, and its path with *names* in their places."""
    method, _, path = operation.partition(" ")
    assert path.count("{") == len(names), f"{operation} wants {path.count('{')} names"
    for name in names:
        path = re.sub(r"\{[^}]*\}", quote(name, safe="/@:").replace("\\", r"\\"), path, count=1)
    return method, path


def unknown_names(name: str) -> list[str]:
    """Return names of the same kind that nobody has given to anything."""
    return [_NOWHERE, name[0] + "a" * 25] if _ID.match(name) else [_NOWHERE]


def fields(problem: Mapping[str, Any]) -> list[str]:
    """Return the fields that are at fault."""
    return [one["field"] for one in problem["errors"]]
