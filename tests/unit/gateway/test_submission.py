from datetime import UTC, datetime

import pytest

from services.gateway.core import submission
from shared.errors import WherryError
from shared.job import GangPlace, Job, Owner
from shared.requests.accounts import Principal
from shared.spec import SPEC_BYTES_MAX, JobSpec

ANNA = Principal(user_id="u1", name="anna", email="Anna@example.com")
NOBODY = Principal(user_id="u2", name="nobody")
ADMIN = Principal(user_id="u0", name="root", role="admin")
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRET = "whsec_" + "A" * 44


def spec(**fields: object) -> JobSpec:
    return JobSpec.model_validate({"image": "busybox", **fields})


def refused(call) -> WherryError:
    with pytest.raises(WherryError) as caught:
        call()
    return caught.value


def test_the_header_is_the_key_and_the_spec_may_only_repeat_it() -> None:
    assert submission.effective_key(None, spec()) is None
    assert submission.effective_key(None, spec(idempotency_key="a")) == "a"
    assert submission.effective_key("a", spec(idempotency_key="a")) == "a"
    assert submission.effective_key("a", spec()) == "a"
    error = refused(lambda: submission.effective_key("a", spec(idempotency_key="b")))
    assert (error.code, error.fields[0].field) == ("invalid", "idempotency_key")


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_that_is_empty_or_too_long_is_refused(key: str) -> None:
    assert refused(lambda: submission.effective_key(key, spec())).fields[0].field == "Idempotency-Key"


def test_the_digest_is_of_what_was_asked_for_and_not_of_how_it_was_written() -> None:
    plain = submission.digest(spec(params={"a": 1, "b": 2}, resources={"memory": "1GiB"}), None)
    assert plain == submission.digest(spec(params={"b": 2, "a": 1}), None)  # 1 GiB is the default
    assert plain == submission.digest(spec(params={"b": 2, "a": 1}, idempotency_key="k"), None)
    assert plain != submission.digest(spec(params={"a": 1, "b": 3}), None)
    assert plain != submission.digest(spec(params={"a": 1, "b": 2}, name="other"), None)


def test_a_source_counts_by_its_bytes_because_every_upload_has_an_id_of_its_own() -> None:
    one, two = "a" + "a" * 25, "a" + "b" * 25
    assert submission.digest(spec(source=one), "s1") == submission.digest(spec(source=two), "s1")
    assert submission.digest(spec(source=one), "s1") == submission.digest(spec(), "s1")
    assert submission.digest(spec(source=one), "s1") != submission.digest(spec(source=one), "s2")


def test_the_same_key_with_another_spec_is_a_conflict() -> None:
    job = submission.new_job("j1", spec(), Owner(id="u1", name="anna"), "digest", NOW)
    submission.same_request(job, "digest")
    assert refused(lambda: submission.same_request(job, "other")).code == "idempotency_conflict"


def test_without_a_target_the_owner_hears_of_every_end() -> None:
    (notify,) = submission.completed(spec(), ANNA, {}, None).notify
    assert notify.email == "Anna@example.com"
    assert set(notify.on) == {"succeeded", "failed", "cancelled", "timed_out"}
    assert submission.completed(spec(), NOBODY, {}, None).notify == ()


def test_with_a_target_of_their_own_nobody_else_is_added() -> None:
    asked = spec(notify=[{"webhook": {"url": "https://x.org"}}])
    assert submission.completed(asked, ANNA, {}, None).notify == asked.notify


def test_a_recorded_spec_has_references_instead_of_secrets_and_no_key() -> None:
    asked = spec(
        notify=[{"webhook": {"url": "https://x.org"}}, {"webhook": {"url": "https://y.org", "secret": SECRET}}],
        idempotency_key="k",
    )
    assert list(submission.secrets_given(asked)) == [(1, SECRET)]
    recorded = submission.completed(asked, ANNA, {1: "s7"}, None)
    assert SECRET not in recorded.model_dump_json()
    assert recorded.idempotency_key is None
    assert [item.webhook and item.webhook.secret_ref for item in recorded.notify] == [None, "s7"]


def test_nobody_chooses_the_reference_of_a_secret() -> None:
    asked = spec(notify=[{"webhook": {"url": "https://x.org", "secret_ref": "s1"}}])
    error = refused(lambda: submission.check(asked, ADMIN, 10))
    assert error.fields[0].field == "notify.0.webhook.secret_ref"


def test_mail_goes_to_ones_own_address_unless_an_administrator_says_so() -> None:
    others = spec(notify=[{"email": "boss@example.com"}])
    assert refused(lambda: submission.check(others, ANNA, 10)).code == "forbidden_address"
    assert refused(lambda: submission.check(others, NOBODY, 10)).code == "forbidden_address"
    submission.check(others, ADMIN, 10)
    submission.check(spec(notify=[{"email": "anna@EXAMPLE.com"}]), ANNA, 10)


def test_a_number_that_json_does_not_know_is_refused_by_its_path() -> None:
    asked = JobSpec.model_validate_json(b'{"image": "a", "params": {"layers": [{"rate": 1}, {"rate": NaN}]}}')
    assert refused(lambda: submission.check(asked, ANNA, 10)).fields[0].field == "params.layers.1.rate"


def test_a_spec_larger_than_an_event_may_carry_is_refused() -> None:
    asked = spec(params={"text": "x" * SPEC_BYTES_MAX})
    assert refused(lambda: submission.check(asked, ANNA, SPEC_BYTES_MAX + 100)).code == "too_large"


def test_a_new_job_is_queued_and_carries_its_owner() -> None:
    job = submission.new_job("j1", spec(name="n"), submission.owner_of(ANNA), "d", NOW)
    assert (job.state, job.owner.id, job.owner.email, job.created_at) == ("queued", "u1", "Anna@example.com", NOW)
    assert type(job).from_bytes(job.to_bytes()) == job


def test_a_part_of_another_job_is_nothing_to_be_handed_in_again() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    job = Job(id="j2", owner=Owner(id="u1", name="anna"), spec=JobSpec(image="a"), created_at=now, updated_at=now)
    submission.require_own(job)
    place = GangPlace(gang_id="j1", round=0, role="worker", index=3, rank=3, size=0)
    with pytest.raises(WherryError, match=r"j2 is worker 3 of job j1 .* rerun j1") as refused:
        submission.require_own(job.model_copy(update={"member_of": place}))
    assert refused.value.code == "conflict"
