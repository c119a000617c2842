from datetime import UTC, datetime

import pytest

from services.storage.core.access import (
    AttemptScope,
    OwnerScope,
    check_attempt,
    check_input,
    check_source,
    input_of,
    parent_of_worker,
    scope_of,
)
from shared.errors import NotFound, WherryError
from shared.job import Attempt, BlobRef, GangPlace, Job, OutputsRef, Owner
from shared.requests.blobs import BlobScope
from shared.spec import JobSpec
from shared.states import AttemptState, JobState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE = "a" + "b" * 25


def job(state: JobState = JobState.RUNNING, attempt: int = 2, node: str = "n1") -> Job:
    attempts = (Attempt(number=2, node=node, state=AttemptState.RUNNING, placed_at=NOW),)
    spec = JobSpec(image="busybox", source=SOURCE)
    return Job(
        id="j1", owner=Owner(id="u1", name="ann"), spec=spec, state=state, created_at=NOW, updated_at=NOW,
        attempt=attempt, attempts=attempts,
    )  # fmt: skip


def test_a_gateway_stores_for_owners_and_a_node_for_attempts() -> None:
    owner = BlobScope(owner_id="u1", name="x.zip")
    assert scope_of("gateway", owner) == OwnerScope("u1", "x.zip", "application/octet-stream")
    assert scope_of("node", BlobScope(job_id="j1", attempt=0)) == AttemptScope("j1", 0)


@pytest.mark.parametrize(
    ("kind", "scope"),
    [
        ("node", BlobScope(owner_id="u1")),
        ("node", BlobScope(owner_id="u1", job_id="j1", attempt=1)),
        ("node", BlobScope(job_id="j1")),
        ("gateway", BlobScope(job_id="j1", attempt=1)),
        ("gateway", BlobScope()),
        ("somebody", BlobScope(owner_id="u1")),
    ],
)
def test_anything_else_is_forbidden(kind: str, scope: BlobScope) -> None:
    with pytest.raises(WherryError) as caught:
        scope_of(kind, scope)
    assert caught.value.code == "forbidden"


def test_the_current_attempt_on_its_node_may_store() -> None:
    check_attempt(job(), "n1", 2)


@pytest.mark.parametrize(
    ("state", "node", "number"),
    [
        pytest.param(job(), "n2", 2, id="another node"),
        pytest.param(job(), "n1", 1, id="an older attempt"),
        pytest.param(job(attempt=3), "n1", 2, id="replaced, and the next not placed"),
        pytest.param(job(JobState.SUCCEEDED), "n1", 2, id="ended"),
    ],
)
def test_late_and_foreign_attempts_are_refused(state: Job, node: str, number: int) -> None:
    with pytest.raises(WherryError) as caught:
        check_attempt(state, node, number)
    assert caught.value.code == "not_current"


def test_a_node_reads_the_source_of_its_own_job_and_nothing_else() -> None:
    check_source(job(), "n1", SOURCE)
    for state, node, artifact in (
        (job(), "n2", SOURCE),
        (job(), "n1", "a" + "c" * 25),
        (job(attempt=3), "n1", SOURCE),
        (job(JobState.CANCELLED), "n1", SOURCE),
    ):
        with pytest.raises(WherryError) as caught:
            check_source(state, node, artifact)
        assert caught.value.code == "not_found"


OTHER = "j" + "c" * 25


def reader(state: JobState = JobState.STARTING, node: str = "n1") -> Job:
    inputs = {"all": f"job:{OTHER}", "some": f"job:{OTHER}/a/b/"}
    spec = JobSpec(image="busybox", inputs=inputs)
    return job(state, node=node).model_copy(update={"spec": spec})


def test_an_input_names_a_job_and_what_of_it() -> None:
    assert input_of(reader(), "n1", "all").job == (OTHER, None)
    assert input_of(reader(), "n1", "some").job == (OTHER, "a/b")


@pytest.mark.parametrize(
    ("job_", "name"),
    [(reader(node="n2"), "all"), (reader(JobState.CANCELLED), "all"), (reader(), "none"), (job(attempt=3), "all")],
)
def test_a_node_sees_only_inputs_of_what_it_runs(job_: Job, name: str) -> None:
    with pytest.raises(NotFound):
        input_of(job_, "n1", name)


def test_inputs_are_of_the_same_owner_and_there_once_the_other_job_has_ended() -> None:
    outputs = OutputsRef(manifest=BlobRef(sha256="0" * 64, size=1), files=1, bytes=1)
    ended = job(JobState.FAILED).model_copy(update={"id": OTHER, "outputs": outputs})
    check_input(reader(), ended)
    for update in (
        {"owner": Owner(id="u2", name="bob")}, {"outputs": None}, {"state": JobState.FINISHING},
    ):  # fmt: skip
        with pytest.raises(NotFound):
            check_input(reader(), ended.model_copy(update=update))


def test_the_node_of_a_worker_may_read_items_of_its_map_job() -> None:
    place = GangPlace(gang_id="j9", round=1, role="worker", index=0, rank=0, size=1)
    worker = job().model_copy(update={"member_of": place})
    assert parent_of_worker(worker, "n1", "i1") == "j9"
    replica = worker.model_copy(update={"member_of": place.model_copy(update={"role": "replica"})})
    ended = worker.model_copy(update={"state": JobState.FAILED})
    for other, node in ((worker, "n2"), (job(), "n1"), (replica, "n1"), (ended, "n1")):
        with pytest.raises(NotFound):
            parent_of_worker(other, node, "i1")
