"""One test per endpoint: each operation of the gateway's OpenAPI document, asked as a user would and in wrong ways."""

from collections.abc import Iterator

import pytest

from tests.e2e.documented import User, filled
from tests.e2e.endpoints import CASES, Things
from tests.e2e.stack import Stack


@pytest.fixture(scope="module")
def user(stack: Stack) -> Iterator[User]:
    token = stack.http.headers["Authorization"].removeprefix("Bearer ")
    one = User(f"http://127.0.0.1:{stack.port}", token)
    yield one
    one.close()


@pytest.fixture(scope="module")
def things(user: User, stack: Stack, request: pytest.FixtureRequest) -> Iterator[Things]:
    things = Things(user, stack, request)
    yield things
    things.close()


def test_every_operation_of_the_document_has_a_case(user: User) -> None:
    assert set(CASES) ^ set(user.document.operations) == set()


@pytest.mark.parametrize("operation", list(CASES))
def test_an_operation_answers_as_described_and_refuses_what_is_wrong(
    operation: str, user: User, things: Things
) -> None:
    if user.document.needs_token(operation):
        user.refused_to_strangers(operation)
    CASES[operation](user, things)
    assert operation in user.answered, f"its case does not ask for {operation}"
    user.wrong_query_is_named(operation)
    user.wrong_body_is_named(operation)
    if operation not in FOR_ALL_NAMES:
        user.unknown_is_told(operation)
    if operation not in FOR_EVERYBODY and ("{" in operation or user.document.may_be_forbidden(operation)):
        user.refused_to_others(operation, things.others_token)


#: What is asked with a name that may be anything.
FOR_ALL_NAMES = {"OPTIONS /v1/uploads/{upload_id}"}
#: What any user may ask of what is there, or of what is not named in the path.
FOR_EVERYBODY = FOR_ALL_NAMES | {
    "GET /v1/jobs", "POST /v1/datasets", "GET /v1/nodes/{node}", "GET /v1/nodes/{node}/metrics",
    "GET /v1/models/{ref}", "POST /v1/models/{ref}/runs", "GET /v1/models/{name}/evaluations",
}  # fmt: skip


#: The endpoints of the image-processing seed, as it lists them.
SEED = (
    "GET /login", "POST /login", "DELETE /logout", "GET /status", "POST /workloads", "GET /workloads/{workload_id}",
    "POST /images", "GET /images/{image_id}",
)  # fmt: skip


@pytest.mark.parametrize("at_root", SEED)
def test_an_endpoint_of_the_seed_answers_at_the_root_as_it_does_under_v1(
    at_root: str, user: User, things: Things
) -> None:
    operation = at_root.replace(" /", " /v1/")
    if user.document.needs_token(operation):
        method, path = filled(at_root, ["none"] * at_root.count("{"))
        user.is_problem(operation, user.stranger.request(method, path), 401, "unauthenticated")
    if operation not in user.answered:
        CASES[operation](user, things)
    asked = user.answered[operation]
    method, path = filled(at_root, asked.names)
    answer = user.http.request(method, path, **asked.sent)
    assert user.document.faults(operation, answer) == []
    assert answer.is_success or (operation, answer.status_code) in GONE, answer.text


#: What was asked once cannot be asked again: that token is dead, that workload has ended.
GONE = {("DELETE /v1/logout", 401), ("POST /v1/images", 409)}
