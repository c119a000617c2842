from datetime import UTC, datetime
from typing import Any

from services.notifier.core.rules import deliveries
from shared.job import Failure, Job, OutputsRef, Owner
from shared.spec import JobSpec
from shared.states import EndReason, JobState

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MAIL = {"email": "ann@example.org"}
HOOK = {"webhook": {"url": "https://example.org/hook", "secret_ref": "s1"}}


def job(*notify: dict[str, Any], **facts: Any) -> Job:
    spec = JobSpec.model_validate({"name": "train", "image": "x", "notify": notify})
    return Job(
        id="j1",
        owner=Owner(id="u1", name="ann"),
        spec=spec,
        state=JobState.SUCCEEDED,
        created_at=AT,
        updated_at=AT,
        ended_at=AT,
        **facts,
    )


def test_every_target_that_wants_the_end_gets_one_delivery():
    wanted = deliveries(job(MAIL, HOOK, {**MAIL, "on": ["failed"]}), "succeeded", "e1", AT)
    assert [(d.kind, d.target, d.secret_ref) for d in wanted] == [
        ("email", "ann@example.org", None),
        ("webhook", "https://example.org/hook", "s1"),
    ]
    assert {(d.job_id, d.owner_id, d.event_id, d.event) for d in wanted} == {("j1", "u1", "e1", "succeeded")}


def test_targets_that_want_other_ends_hear_nothing():
    assert deliveries(job({**MAIL, "on": ["failed"]}), "succeeded", "e1", AT) == ()


def test_events_that_are_no_ends_tell_nobody():
    for event in ("created", "pending", "running", "requeued", "nonsense"):
        assert deliveries(job(MAIL), event, "e1", AT) == ()


def test_the_same_event_asks_for_the_same_deliveries_and_another_for_others():
    first = deliveries(job(MAIL, HOOK), "succeeded", "e1", AT)
    assert deliveries(job(MAIL, HOOK), "succeeded", "e1", AT) == first
    other = deliveries(job(MAIL, HOOK), "succeeded", "e2", AT)
    assert len({d.delivery_id for d in (*first, *other)}) == 4


def test_a_target_named_twice_is_told_once():
    assert len(deliveries(job(MAIL, MAIL, HOOK, HOOK), "succeeded", "e1", AT)) == 2


def test_the_summary_has_what_a_receiver_wants_to_know():
    failure = Failure(reason=EndReason.OOM, message="out of memory")
    outputs = OutputsRef.model_validate({"manifest": {"sha256": "0" * 64, "size": 1}, "files": 3, "bytes": 70})
    (wanted,) = deliveries(job(MAIL, error=failure, outputs=outputs, attempt=2), "succeeded", "e1", AT)
    assert wanted.job is not None
    assert wanted.job.model_dump(exclude={"created_at", "ended_at", "running_at"}) == {
        "name": "train",
        "state": "succeeded",
        "error": {"reason": "oom", "message": "out of memory"},
        "files": 3,
        "bytes": 70,
        "attempts": 2,
    }
