import json
from collections.abc import Callable

import pytest

from client.wherry import catalogue, datasets, mapping, models, protocol, serving, trainings
from client.wherry.effects import Request, Response
from client.wherry.errors import WherryError
from client.wherry.scripts import backoff


def test_a_problem_document_becomes_an_error_with_its_fields():
    document = {
        "code": "invalid", "detail": "Two things are wrong.", "status": 422,
        "errors": [{"field": "resources.cpus", "message": "too many"}],
    }  # fmt: skip
    error = protocol.problem(422, {}, json.dumps(document).encode())
    assert error is not None
    assert (error.status, error.code, error.detail, error.retryable) == (422, "invalid", "Two things are wrong.", False)
    assert [(item.field, item.message) for item in error.fields] == [("resources.cpus", "too many")]


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b"", b"[]", b'"x"', b"\xff"])
def test_what_a_proxy_says_instead_is_an_error_too(body: bytes):
    error = protocol.problem(502, {"retry-after": "3"}, body)
    assert error is not None
    assert (error.code, error.retryable, error.retry_after_s) == ("bad_gateway", True, 3.0)
    assert "502" in error.detail


def test_success_is_no_error():
    assert protocol.problem(202, {}, b"") is None


def test_fields_of_a_newer_server_are_kept_and_those_of_an_older_one_may_be_missing():
    answer = Response(200, {}, b'{"job_id": "j1", "state": "paused", "mood": "fine"}')
    job = protocol.parse(models.Job, answer)
    assert (job.state, job.is_terminal, job.progress) == ("paused", False, None)
    assert job.model_dump(exclude_unset=True) == {"job_id": "j1", "state": "paused", "mood": "fine"}


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]"])
def test_an_answer_of_something_else_is_said_to_be_that(body: bytes):
    with pytest.raises(WherryError) as caught:
        protocol.parse(models.Job, Response(200, {}, body))
    assert caught.value.code == "bad_answer"


@pytest.mark.parametrize(
    ("path", "sent"),
    [("a b/c?d#e.txt", "a%20b/c%3Fd%23e.txt"), ("größe/100%.txt", "gr%C3%B6%C3%9Fe/100%25.txt")],
)
def test_any_file_name_survives_the_url(path: str, sent: str):
    assert protocol.output("j1", path, 0).path == f"/jobs/j1/outputs/{sent}"


def decline(request_id: str) -> Request:
    return catalogue.Questions.decline("m", request_id, "no")[1]


@pytest.mark.parametrize(
    "ask", [protocol.job, protocol.quota, datasets.show, mapping.workload, serving.show, trainings.show, decline]
)
def test_a_name_that_would_change_the_path_is_not_sent(ask: Callable[[str], Request]):
    for name in ("", ".", ".."):
        with pytest.raises(WherryError):
            ask(name)
    assert "/..%2Fusers" in ask("../users").path


@pytest.mark.parametrize(
    ("event", "data", "item"),
    [
        ("log", '{"n": 3, "t": "2026-01-01T00:00:00Z", "stream": "stderr", "text": "x"}', "x"),
        ("progress", '{"fraction": 0.5, "message": "half"}', "half"),
        ("metric", '{"name": "rmse", "value": null, "step": 1}', "rmse"),
        ("gap", '{"first": 1, "last": 5}', None),
        ("end", '{"state": "failed"}', "failed"),
    ],
)
def test_every_event_of_a_log_is_understood(event: str, data: str, item: str | None):
    found = protocol.job_output(event, data)
    assert found is not None
    assert item in {None, *found.model_dump().values()}


def test_events_that_a_newer_server_may_send_are_passed_over():
    assert protocol.job_output("weather", "{}") is None
    assert protocol.job_output("log", "no json") is None


@pytest.mark.parametrize(
    ("kind", "ended"),
    [
        ("io.wherry.job.succeeded.v1", True), ("io.wherry.job.timed_out.v1", True), ("io.wherry.job.running.v1", False),
        ("io.wherry.attempt.failed.v1", False), ("", False),
    ],
)  # fmt: skip
def test_the_end_of_a_job_is_known_by_its_event(kind: str, ended: bool):  # noqa: FBT001
    assert protocol.ended({"type": kind}) is ended


def test_pauses_double_up_to_a_limit_and_heed_the_server():
    assert [backoff(tries) for tries in range(1, 8)] == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert backoff(1, 7.0) == 7.0


@pytest.mark.parametrize(
    ("code", "again"),
    [("registry_failed", False), ("model_failed", False), ("replicas_fail", False), ("unavailable", True)],
)
def test_what_others_have_failed_in_is_said_at_once_and_not_asked_for_again(code: str, *, again: bool):
    error = protocol.problem(502, {}, json.dumps({"code": code, "detail": "It is down."}).encode())
    assert error is not None
    assert (error.code, error.retryable) == (code, again)
