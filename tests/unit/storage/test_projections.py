from datetime import UTC, datetime, timedelta

import pytest

from services.storage.core import projections as p
from shared.errors import NotFound
from shared.events import DeliveryRequested, DeliveryTried, LogLine, MetricPoint, OutputBatch, Progress
from shared.job import Attempt, Job, Owner
from shared.spec import JobSpec
from shared.states import AttemptState

NOW = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


def job(*nodes: str) -> Job:
    attempts = tuple(
        Attempt(number=number, node=node, state=AttemptState.RUNNING, placed_at=NOW)
        for number, node in enumerate(nodes, 1)
    )
    spec = JobSpec(image="busybox", params={"$where": 1, "a.b": {"$set": 2}}, labels=("x",))
    return Job(id="j1", owner=Owner(id="u1", name="ann"), spec=spec, created_at=NOW, updated_at=NOW, attempts=attempts)


def test_times_survive_to_the_microsecond() -> None:
    assert p.moment_of(p.microseconds(NOW)) == NOW


def test_the_jobs_document_gives_the_job_back_and_users_keys_stay_text() -> None:
    upsert = p.job_upsert(7, job("n1"))
    assert Job.from_bytes(upsert.fields["job"].encode()) == job("n1")
    assert (upsert.id, upsert.version, upsert.fields["nodes.1"]) == ("j1", 7, "n1")
    assert not any(key.startswith("$") for key in upsert.fields)


def test_of_a_batch_the_newest_wins_and_no_attempts_node_is_lost() -> None:
    old, new = p.Upsert("j1", 3, {"state": "a", "nodes.1": "n1"}), p.Upsert("j1", 5, {"state": "b", "nodes.9": "n2"})
    other = p.Upsert("j2", 4, {"state": "c"})
    merged = p.Upsert("j1", 5, {"state": "b", "nodes.1": "n1", "nodes.9": "n2"})
    assert sorted(p.newest([new, other, old]), key=lambda one: one.id) == [merged, other]


def test_the_same_output_again_is_the_same_document() -> None:
    lines = tuple(LogLine(n=number, t=NOW, x=f"line {number}") for number in (4, 5, 6))
    batch = OutputBatch(lines=lines, metrics=(MetricPoint(name="loss", value=0.5, at=NOW),))
    key = p.attempt_key("j1", 1, "n1")
    document = p.log_document(key, batch)
    assert document is not None
    assert document == p.log_document(key, batch)
    assert (document["first"], document["last"]) == (4, 6)
    assert p.metric_document(key, batch) == p.metric_document(key, batch)
    assert p.log_document(key, OutputBatch()) is None
    assert p.metric_document(key, OutputBatch()) is None


def test_progress_is_as_new_as_its_time() -> None:
    older = p.progress_upsert("k", Progress(fraction=0.1, at=NOW))
    newer = p.progress_upsert("k", Progress(fraction=0.2, at=NOW + timedelta(microseconds=1)))
    assert older.version < newer.version


def test_a_delivery_is_the_request_and_its_last_try() -> None:
    requested = DeliveryRequested(
        delivery_id="d1", job_id="j1", owner_id="u1", event_id="e", event="failed", kind="email", target="a@b", at=NOW
    )
    later = NOW + timedelta(seconds=5)
    tried = DeliveryTried(delivery_id="d1", job_id="j1", owner_id="u1", tries=2, state="delivered", at=later)
    fields = p.delivery_requested(requested)
    assert p.delivery_view(fields).state == "pending"
    view = p.delivery_view(fields | p.delivery_tried(9, tried).fields)
    assert (view.state, view.tries, view.updated_at) == ("delivered", 2, later)
    with pytest.raises(NotFound):
        p.delivery_view(p.delivery_tried(9, tried).fields)
