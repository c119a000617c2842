"""Each check goes red on evidence of its own, and stays green on what is right; the moments of faults repeat."""

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.chaos.checks import Evidence, Fault, Hook, Logged, hit_share, violations
from tests.chaos.faults import Blow, blows, moments
from tests.chaos.mix import SHARES, Plan, plans

JOB = "j1"


def plan(kind: str = "output") -> Plan:
    return next(one for one in plans(1, 300, "t") if one.kind == kind and one.notify)


def right(kind: str = "output") -> Evidence:
    """Evidence of one job that went as it should, in its second attempt."""
    wanted = plan(kind)
    attempts = [{"number": number, "node": "b", "exit_code": 7} for number in (1, 2)]
    job: dict[str, Any] = {"attempt": 2, "attempts": attempts, "tries": wanted.max_attempts}
    found = Evidence(accepted={JOB: wanted}, views={JOB: wanted.end}, starts=Counter({(JOB, 1): 1, (JOB, 2): 1}))
    found.log[JOB] = [Logged(1, "created", 100, job), Logged(9, wanted.end, 110, job)]
    found.outputs[JOB] = wanted.output(2)
    found.hooks = [Hook(wanted.hook_path, "d1", JOB, wanted.end)] * 2
    found.pending = {"storage": 0}
    return found


@pytest.mark.parametrize("kind", SHARES)
def test_what_is_right_breaks_no_promise(kind: str) -> None:
    assert violations(right(kind)) == []


def _more(found: Evidence, name: str) -> None:
    found.log[JOB].append(Logged(10, name, 111, found.log[JOB][-1].job))


def _told_as(found: Evidence, **changes: Any) -> None:
    found.hooks.append(replace(found.hooks[0], **changes))


WRONG: dict[str, Callable[[Evidence], Any]] = {
    "lost": lambda found: found.log[JOB].pop(),
    "two_outcomes": lambda found: _more(found, "succeeded"),
    "wrong_end": lambda found: found.accepted.update({JOB: replace(plan(), end="failed")}),
    "wrong_view": lambda found: found.views.update({JOB: "running"}),
    "wrong_output": lambda found: found.outputs.update({JOB: plan().output(1)}),
    "started_twice": lambda found: found.starts.update([(JOB, 1)]),
    "orphan": lambda found: found.orphans.append("container x"),
    "stuck": lambda found: found.pending.update({"storage": 1}),
    "dead_letter": lambda found: setattr(found, "dead_letters", 1),
    "missed_notification": lambda found: found.hooks.clear(),
    "notification_ids": lambda found: _told_as(found, webhook_id="d2"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_each_wrong_shows_as_what_it_is(kind: str) -> None:
    found = right()
    WRONG[kind](found)
    assert {one.kind for one in violations(found)} >= {kind}


def test_one_id_for_two_targets_is_wrong() -> None:
    found = right()
    _told_as(found, path="chaos/other")
    assert [one.kind for one in violations(found)] == ["notification_ids"]


def test_a_job_that_failed_in_another_way_than_planned_is_wrong() -> None:
    found = right("fails")
    found.log[JOB][-1].job["attempts"][-1]["exit_code"] = 137
    assert [one.kind for one in violations(found)] == ["wrong_end"]


@pytest.mark.parametrize(
    ("fault", "hit"),
    [
        (Fault(105, "scheduler", "kill"), True),
        (Fault(105, "notifier", "kill"), False),  # not on a job's path
        (Fault(105, "node_agent@b", "kill"), True),
        (Fault(105, "node_agent", "kill"), False),  # another node's
        (Fault(99, "gateway", "kill"), False),  # before it was there
        (Fault(90, "nats", "stop", 15), True),
        (Fault(111, "storage", "kill"), False),
    ],
)
def test_a_job_is_hit_by_faults_on_its_path_in_its_lifetime(fault: Fault, hit: bool) -> None:  # noqa: FBT001
    assert hit_share(right(), [fault]) == float(hit)


def test_the_same_seed_gives_the_same_jobs_and_moments() -> None:
    assert list(plans(7, 50, "x")) == list(plans(7, 50, "x"))
    assert [one.spec("docker", "i", "http://h/", None) for one in plans(7, 50, "x")] != [
        one.spec("docker", "i", "http://h/", None) for one in plans(8, 50, "x")
    ]
    blow = Blow("gateway", 5)
    first = [*itertools.islice(moments(7, blow), 20)]
    assert first == [*itertools.islice(moments(7, blow), 20)]
    assert first != [*itertools.islice(moments(7, Blow("storage", 5)), 20)]


def test_every_service_and_nats_is_killed_as_often_as_asked() -> None:
    planned = blows("kill", ["node_agent", "node_agent@n2"], service_s=5, server_s=30, pause_s=60)
    assert {blow.target for blow in planned} == {
        "gateway", "scheduler", "storage", "notifier", "node_agent", "node_agent@n2", "nats",
    }  # fmt: skip
    for blow in planned:
        waits = [wait for wait, _ in itertools.islice(moments(1, blow), 2000)]
        assert sum(waits) / len(waits) == pytest.approx(30 if blow.target == "nats" else 5, rel=0.1)


def test_stops_last_from_one_second_to_the_longest() -> None:
    for blow in blows("stop", ["node_agent"], service_s=5, server_s=30, pause_s=60):
        stops = [stop for _, stop in itertools.islice(moments(1, blow), 500)]
        assert 1 <= min(stops) < 2
        assert 30 < max(stops) <= 60
