"""Which replica is asked, and what follows from its answer."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.core.serving import (
    BUSY_PAUSE_S,
    GONE_PAUSE_S,
    REPEATS_MAX,
    Board,
    Lack,
    Replica,
    is_elsewhere,
    is_failing,
    is_repeatable,
    lack_of,
    passed_back,
    replicas_of,
    why_waiting,
)
from shared.job import Failure, GangMember, Job, Owner, PendingReason
from shared.spec import JobSpec
from shared.states import EndReason, JobState, PendingCode

T0 = datetime(2026, 1, 1, tzinfo=UTC)
A, B, C = Replica("ja", "n1"), Replica("jb", "n1"), Replica("jc", "n2")


def service(state: JobState = JobState.RUNNING, replicas: int | None = None, **more: Any) -> Job:
    fields = {key: more.pop(key) for key in ("idle",) if key in more}
    spec = JobSpec.model_validate({"kind": "service", "image": "i", "service": {"port": 80, "replicas": 2, **fields}})
    owner = Owner(id="u1", name="ann")
    return Job(id="j1", owner=owner, spec=spec, state=state, created_at=T0, updated_at=T0, replicas=replicas, **more)


def member(job_id: str, state: JobState, node: str = "n1", error: Failure | None = None) -> GangMember:
    return GangMember(job_id=job_id, role="replica", index=0, node=node, state=state, placed_at=T0, error=error)


def board(*replicas: Replica) -> Board:
    made = Board()
    made.update(replicas)
    return made


def test_the_replica_with_the_fewest_open_requests_is_asked_and_of_those_the_one_asked_longest_ago():
    it = board(A, B, C)
    order = []
    for _ in range(4):
        one = it.choose(0)
        assert one
        order.append(one)
        it.begin(one)
    assert order == [A, B, C, A]
    it.end(C)
    assert it.choose(0) == C
    for one in (A, A, B):
        it.end(one)
    assert it.choose(0) == B


def test_one_that_sent_a_request_away_is_left_alone_for_a_while():
    it = board(A, B)
    it.avoid(A, "replica_busy", 10)
    assert it.choose(10) == B
    it.avoid(B, "replica_gone", 10)
    assert it.choose(10) is None
    assert it.free_at() == 10 + BUSY_PAUSE_S
    assert it.choose(10 + BUSY_PAUSE_S) == A
    it.begin(A)
    assert it.choose(10 + GONE_PAUSE_S) == B


def test_without_replicas_none_is_chosen_and_none_comes_free():
    assert board().choose(0) is None
    assert board().free_at() is None


def test_what_is_known_of_a_replica_goes_with_it():
    it = board(A, B)
    it.begin(A)
    it.avoid(A, "replica_gone", 0)
    it.update((B,))
    it.end(A)
    assert not it.asked
    assert not it.avoided
    it.update((A, B))
    assert it.choose(0) == A


@given(st.lists(st.sampled_from(["begin", "end", "avoid", "drop", "come"]), max_size=60), st.randoms())
def test_the_chosen_replica_is_there_and_never_has_more_open_requests_than_another_that_is_free(moves, random):
    it, open_ = board(A, B, C), []
    for now, move in enumerate(moves):
        if move == "begin" and (one := it.choose(now)):
            free = [other for other in it.replicas if it.avoided.get(other.job_id, 0) <= now]
            assert one in free
            assert it.asked.get(one.job_id, 0) == min(it.asked.get(other.job_id, 0) for other in free)
            it.begin(one)
            open_.append(one)
        elif move == "end" and open_:
            it.end(open_.pop(random.randrange(len(open_))))
        elif move == "avoid" and it.replicas:
            it.avoid(random.choice(it.replicas), "replica_gone", now)
        elif move == "drop":
            it.update(it.replicas[1:])
            open_ = [one for one in open_ if one in it.replicas]
        elif move == "come":
            it.update((A, B, C))
    assert all(count >= 0 for count in it.asked.values())


def test_only_replicas_that_run_are_asked():
    states = [JobState.QUEUED, JobState.STARTING, JobState.RUNNING, JobState.FINISHING]
    job = service(members=tuple(member(f"j{state}", state) for state in states))
    assert replicas_of(job) == (Replica("jrunning", "n1"),)


@pytest.mark.parametrize(
    ("job", "lack"),
    [
        (service(JobState.FAILED), Lack.ENDED),
        (service(replicas=0), Lack.STOPPED),
        (service(replicas=0, idle=60), Lack.ASLEEP),
        (service(JobState.QUEUED), Lack.COMING),
        (service(replicas=1, idle=60), Lack.COMING),
    ],
)
def test_why_a_service_has_no_replica(job: Job, lack: Lack):
    assert lack_of(job) is lack


def failing(**more: Any) -> Job:
    """A service of which replicas have failed one after the other; the next one is made in a minute."""
    fields: dict[str, Any] = {"tries": 2, "not_before": T0 + timedelta(minutes=1), **more}
    return service(JobState.QUEUED, **fields)


@pytest.mark.parametrize(
    ("job", "now", "expected"),
    [
        (failing(), T0, True),
        (failing(members=(member("jx", JobState.FINISHING),)), T0, True),
        (failing(members=(member("jx", JobState.STARTING),)), T0, False),
        (failing(tries=1), T0, False),
        (failing(tries=0, losses=5), T0, False),
        (failing(), T0 + timedelta(minutes=1), False),
        (failing(not_before=None), T0, False),
    ],
)
def test_a_service_fails_while_its_replicas_have_failed_one_after_the_other_and_none_is_there(
    job: Job, now: datetime, *, expected: bool
):
    assert is_failing(job, now) is expected


@pytest.mark.parametrize(
    ("code", "is_repeatable", "elsewhere"),
    [
        ("replica_busy", False, True),
        ("replica_gone", False, True),
        ("replica_draining", False, True),
        ("unavailable", False, True),
        ("replica_lost", True, True),
        ("replica_lost", False, False),
        ("replica_timeout", True, False),
        ("too_large", True, False),
    ],
)
def test_another_replica_is_asked_where_that_may_help_and_does_no_harm(
    code: str, *, is_repeatable: bool, elsewhere: bool
):
    assert is_elsewhere(code, is_repeatable=is_repeatable) is elsewhere


def test_a_request_that_ends_each_program_which_works_on_it_does_not_end_them_all():
    assert is_elsewhere("replica_lost", is_repeatable=True, losses=REPEATS_MAX - 1)
    assert not is_elsewhere("replica_lost", is_repeatable=True, losses=REPEATS_MAX)
    assert is_elsewhere("replica_gone", is_repeatable=True, losses=REPEATS_MAX)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/models/digits:predict", True),
        ("POST", "/v1/models/digits/versions/3:classify?x=1", True),
        ("POST", "/v1/models/digits/labels/stable:regress", True),
        ("POST", "/v2/models/digits/infer", True),
        ("POST", "/v2/models/digits/versions/3/infer", True),
        ("GET", "/v2/repository/index", True),
        ("POST", "/v2/repository/models/digits/load", False),
        ("POST", "/v2/models/digits/train", False),
        ("POST", "/v2/models/a/b/infer", False),
        ("POST", "/v1/orders?next=/v1/models/digits:predict", False),
        ("POST", "/v1/models/digits:predict/orders", False),
    ],
)
def test_what_only_looks_and_what_the_protocols_call_a_prediction_may_be_asked_twice(
    method: str, path: str, *, expected: bool
):
    assert is_repeatable(method, path) is expected


def test_who_waits_for_a_replica_is_told_why():
    assert why_waiting(service()) == "No replica of it runs yet."
    pending = (PendingReason(code=PendingCode.MEMORY, nodes=2, message="2 nodes have too little memory"),)
    assert "2 nodes have too little memory" in why_waiting(service(pending=pending))
    failed = member("jx", JobState.FAILED, error=Failure(reason=EndReason.EXIT_CODE, message="exit code 3"))
    assert "exit code 3" in why_waiting(service(members=(failed,)))


PAGE = ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; sandbox")


def test_an_answer_keeps_what_is_about_itself():
    headers = (("Content-Type", "application/json"), ("X-Took", "1"), ("X-Took", "2"), ("Inference-Header-Length", "9"))
    small = (("content-type", "application/json"), ("x-took", "1"), ("x-took", "2"), ("inference-header-length", "9"))
    assert passed_back(headers) == (*small, PAGE)


@pytest.mark.parametrize(
    "header",
    [
        ("Set-Cookie", "token=1"),
        ("Content-Security-Policy", "script-src *"),
        ("Access-Control-Allow-Origin", "*"),
        ("Service-Worker-Allowed", "/"),
        ("Clear-Site-Data", "*"),
        ("WWW-Authenticate", "Basic"),
        ("Strict-Transport-Security", "max-age=1"),
        ("Transfer-Encoding", "chunked"),
        ("Content-Length", "1"),
        ("X-Any", "1\r\nSet-Cookie: token=1"),
        ("X-Any\r\nSet-Cookie", "token=1"),
        ("X-Any", "\u2713"),
        ("\u2713", "1"),
        ("", "1"),
    ],
)
def test_a_program_sets_nothing_that_is_the_gateways_or_no_header(header: tuple[str, str]):
    assert passed_back([header]) == (PAGE,)
