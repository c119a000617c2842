import pytest
from pydantic import ValidationError

from services.gateway.core import problems
from shared.errors import WherryError
from shared.spec import JobSpec


def refusal(body: bytes) -> WherryError:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate_json(body)
    return problems.from_validation(caught.value, JobSpec)


def test_an_unknown_field_is_named_and_the_right_one_suggested() -> None:
    error = refusal(b'{"image": "a", "comand": "x"}')
    assert error.code == "invalid"
    assert [(item.field, item.message) for item in error.fields] == [
        ("comand", "There is no such field; did you mean command?")
    ]


def test_a_nested_field_is_named_by_its_path() -> None:
    error = refusal(b'{"image": "a", "notify": [{"email": "me@x.org"}, {"email": "nobody"}], "resources": {"cpus": 0}}')
    assert [item.field for item in error.fields] == ["resources.cpus", "notify.1.email"]


def test_the_branches_of_a_union_are_one_problem_without_inner_words() -> None:
    (field,) = refusal(b'{"image": "a", "command": 5}').fields
    assert field.field == "command"
    assert field.message == "Give text here, or: Give a list here"


def test_what_is_no_json_is_a_400_with_the_position() -> None:
    error = refusal(b'{"image": "a",}')
    assert (error.code, problems.status_of(error)) == ("invalid_json", 400)
    assert "line 1 column 15" in error.message


def test_a_rule_over_several_fields_is_said_without_a_field() -> None:
    (field,) = refusal(b'{"command": "true"}').fields
    assert (field.field, field.message) == ("", "a container job needs an image or a model")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("not_found", 404), ("forbidden", 403), ("unauthenticated", 401), ("conflict", 409), ("invalid", 422),
        ("unavailable", 503), ("too_large", 413), ("throttled", 429), ("bad_source", 422),
        ("idempotency_conflict", 409),
    ],
)  # fmt: skip
def test_every_code_of_the_contract_has_its_status(code: str, status: int) -> None:
    document = problems.problem(WherryError(code, "Because."), "r1")
    assert (document.status, document.code, document.detail, document.request_id) == (status, code, "Because.", "r1")


def test_an_error_of_our_own_tells_nothing_of_the_inside() -> None:
    document = problems.problem(WherryError("bus_forbidden", "The broker does not let gateway use wherry.secret."))
    assert document.status == 500
    assert "wherry.secret" not in document.model_dump_json()
    unknown = problems.problem(WherryError("log_refused", "WHERRY_JOBS refused"))
    assert (unknown.status, unknown.code) == (500, "internal")
    assert "WHERRY_JOBS" not in unknown.model_dump_json()


def test_only_what_passes_by_itself_says_when_to_come_again() -> None:
    assert problems.retry_after_s(WherryError("unavailable", "")) == 2
    assert problems.retry_after_s(WherryError("throttled", "")) == 10
    assert problems.retry_after_s(WherryError("invalid", "")) is None


def test_statuses_of_the_web_framework_become_codes() -> None:
    assert problems.from_status(404, "x").code == "not_found"
    assert problems.from_status(405, "x").code == "method_not_allowed"
    assert problems.from_status(418, "x").code == "bad_request"
    assert problems.from_status(599, "x").code == "internal"
