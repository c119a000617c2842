"""The rules for one node's record, without anything around them."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.scheduler.core.limits import Limits
from services.scheduler.core.nodes import (
    CONDITION_MOVES,
    DUTY_MOVES,
    Clashed,
    Emptied,
    Event,
    Gone,
    Heard,
    Silent,
    Troubled,
    Wished,
    empty_from,
    is_fit,
    is_open,
    joined,
    refusal,
    step,
)
from shared.fleet import HISTORY_KEPT, PREFETCHES_MAX, PROTOCOL, NodeRecord, NodeWish, Prefetch, PrefetchEnd
from shared.spec import Input
from shared.states import NodeCondition, NodeDuty

START = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = Limits()


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def heard(steady: int = 1, *, session: str = "s1", boot_id: str = "b1", **more) -> Heard:
    return Heard("edge-1", session, boot_id, steady, **more)


def wished(verb: str, **wish) -> Wished:
    return Wished(verb, NodeWish(at=START, **({"by": "root"} | wish)))


@pytest.fixture
def record() -> NodeRecord:
    return joined("n1", heard(), START)


def after(record: NodeRecord, *events: tuple[float, Event]) -> NodeRecord:
    for seconds, event in events:
        record = step(record, event, at(seconds), LIMITS) or record
    return record


def whats(record: NodeRecord) -> list[str]:
    return [change.what for change in record.history]


def test_a_node_joins_online_and_active(record) -> None:
    assert (record.condition, record.duty, record.name) == (NodeCondition.ONLINE, NodeDuty.ACTIVE, "edge-1")
    assert is_open(record)
    assert is_fit(record)
    assert whats(record) == ["joined"]


def test_another_heartbeat_of_a_node_that_is_well_changes_nothing(record) -> None:
    assert step(record, heard(2), at(2), LIMITS) is None


def test_a_silent_node_is_suspect_and_then_lost_and_back_after_three_heartbeats_in_a_row(record) -> None:
    lost = after(record, (100, Silent(11)), (120, Gone(31)))
    assert whats(lost) == ["joined", "suspect", "lost"]
    assert not is_fit(lost)
    waiting = after(lost, (121, heard(1)), (123, heard(2)))
    assert waiting.condition is NodeCondition.LOST
    back = after(waiting, (125, heard(3)))
    assert (back.condition, back.since) == (NodeCondition.ONLINE, at(125))


def test_a_suspect_node_is_back_with_its_next_heartbeat_but_not_twice_in_a_short_time(record) -> None:
    back = after(record, (100, Silent(11)), (101, heard(1)))
    assert (back.condition, back.since) == (NodeCondition.ONLINE, at(101))
    again = after(back, (112, Silent(11)))
    assert again.condition is NodeCondition.ONLINE, "its condition has not lasted yet"
    again = after(back, (131, Silent(11)), (132, heard(1)))
    assert again.condition is NodeCondition.SUSPECT
    assert after(again, (161, heard(9))).condition is NodeCondition.ONLINE


def test_what_flaps_on_is_still_lost_when_its_lease_is_over(record) -> None:
    lost = after(record, (40, Silent(11)), (41, heard(1)), (42, Gone(31)))
    assert lost.condition is NodeCondition.LOST


WALK = st.lists(st.tuples(st.sampled_from(["heard", "silent", "gone"]), st.integers(1, 40)), max_size=80)


@settings(max_examples=300, deadline=None)
@given(WALK)
def test_a_condition_never_changes_faster_than_allowed(walk) -> None:
    """But for being lost, which takes a whole lease of silence, and for the first return in five minutes."""
    record, now, steady = joined("n1", heard(), START), 0.0, 0
    changes = [(0.0, NodeCondition.ONLINE)]
    for what, gap_s in walk:
        now += gap_s
        steady = steady + 1 if what == "heard" else 0
        event = {"heard": heard(steady), "silent": Silent(gap_s), "gone": Gone(gap_s)}[what]
        new = after(record, (now, event))
        if new.condition is not record.condition:
            changes.append((now, new.condition))
        record = new
    returns = [when for when, condition in changes if condition is NodeCondition.ONLINE]
    for index, (when, condition) in enumerate(changes[1:], 1):
        before_s, before = changes[index - 1]
        assert condition in {c for to in CONDITION_MOVES[before].values() for c in to}
        if condition is NodeCondition.LOST:
            continue
        came_back = [one for one in returns[1:] if one < when and when - one < LIMITS.flap_window_s]
        is_first_return = condition is NodeCondition.ONLINE and not came_back
        assert when - before_s >= LIMITS.condition_hold_s or is_first_return
    assert all(b - a >= LIMITS.condition_hold_s for a, b in pairwise(returns[1:]))


def test_drain_has_a_deadline_and_ends_when_the_node_is_empty_and_undrain_ends_it_at_any_time(record) -> None:
    draining = after(record, (10, wished("drain", deadline_s=60, reason="new disk")))
    assert (draining.duty, draining.by, draining.reason) == (NodeDuty.DRAINING, "root", "new disk")
    assert not is_open(draining)
    assert empty_from(draining) == at(70)
    drained = after(draining, (20, Emptied(leaving=False)))
    assert (drained.duty, drained.condition) == (NodeDuty.DRAINED, NodeCondition.ONLINE)
    assert empty_from(drained) is None
    for one in (draining, drained):
        back = after(one, (30, wished("undrain")))
        assert (back.duty, back.deadline) == (NodeDuty.ACTIVE, None)
    assert after(draining, (30, wished("drain"))).deadline is None


def test_a_cordoned_node_gets_nothing_new_and_is_not_emptied(record) -> None:
    cordoned = after(record, (10, wished("cordon", reason="odd noises")))
    assert cordoned.duty is NodeDuty.CORDONED
    assert not is_open(cordoned)
    assert empty_from(cordoned) is None
    assert step(cordoned, Emptied(leaving=False), at(20), LIMITS) is None


def test_every_wish_leads_where_the_table_says(record) -> None:
    for duty in NodeDuty:
        for verb in ("drain", "undrain", "cordon", "reboot"):
            now = record.model_copy(update={"duty": duty})
            found = after(now, (10, wished(verb))).duty
            assert found in DUTY_MOVES[duty].get(verb, {duty})


def test_only_a_node_that_is_lost_or_has_left_is_forgotten_and_it_may_join_anew(record) -> None:
    kept = after(record, (10, wished("forget")))
    assert not kept.forgotten
    assert "only a node that is lost or has left" in kept.history[-1].reason
    gone = after(record, (10, Gone(31)), (20, wished("forget")))
    assert gone.forgotten
    assert step(gone, wished("undrain"), at(21), LIMITS) is None
    back = after(gone, (30, heard()))
    assert (back.forgotten, back.condition, back.since) == (False, NodeCondition.ONLINE, at(30))
    assert whats(back) == ["joined", "lost", "forgotten", "joined"]


def test_a_node_that_leaves_is_drained_and_left_and_active_again_when_it_comes_back(record) -> None:
    leaving = after(record, (10, heard(leaving=True)))
    assert leaving.duty is NodeDuty.DRAINING
    assert step(leaving, heard(leaving=True), at(12), LIMITS) is None
    left = after(leaving, (20, Emptied(leaving=True)))
    assert (left.condition, left.duty) == (NodeCondition.LEFT, NodeDuty.DRAINED)
    assert step(left, Gone(40), at(60), LIMITS) is None, "it is not missed"
    back = after(left, (90, heard(session="s2")))
    assert (back.condition, back.duty) == (NodeCondition.ONLINE, NodeDuty.ACTIVE)


def test_what_an_admin_has_drained_stays_drained_when_it_comes_back(record) -> None:
    drained = after(record, (10, wished("drain")), (11, Emptied(leaving=True)), (60, heard(session="s2")))
    assert (drained.condition, drained.duty) == (NodeCondition.ONLINE, NodeDuty.DRAINED)


def test_three_jobs_lost_one_after_the_other_cordon_a_node_and_undrain_begins_anew(record) -> None:
    two = after(record, (10, Troubled(("j1",), may_cordon=True)), (20, Troubled(("j2",), may_cordon=True)))
    assert two.duty is NodeDuty.ACTIVE
    three = after(two, (30, Troubled(("j3",), may_cordon=True)))
    assert three.duty is NodeDuty.CORDONED
    assert three.reason == "3 jobs were lost here within 600 s: j1, j2, j3"
    back = after(three, (40, wished("undrain")), (50, Troubled(("j4",), may_cordon=True)))
    assert (back.duty, back.troubled_jobs) == (NodeDuty.ACTIVE, ("j4",))


@pytest.mark.parametrize(
    "troubles",
    [
        [(10, ("j1",)), (20, ("j1",)), (30, ("j1",))],  # one job: that may be the job
        [(10, ("j1", "j2", "j3", "j4"))],  # one moment: all that it had
        [(10, ("j1",)), (300, ("j2",)), (611, ("j3",))],  # not within ten minutes
    ],
)
def test_what_is_no_repeated_trouble_cordons_nothing(record, troubles) -> None:
    assert after(record, *((s, Troubled(jobs, may_cordon=True)) for s, jobs in troubles)).duty is NodeDuty.ACTIVE


def test_trouble_on_most_nodes_at_once_is_not_the_nodes_trouble(record) -> None:
    events = [(10 * n, Troubled((f"j{n}",), may_cordon=False)) for n in range(1, 9)]
    assert after(record, *events).duty is NodeDuty.ACTIVE


def test_a_reboot_is_in_the_history_and_an_agents_restart_is_not(record) -> None:
    restarted = after(record, (10, heard(session="s2")))
    assert (restarted.session, whats(restarted)) == ("s2", ["joined"])
    rebooted = after(restarted, (20, heard(session="s3", boot_id="b2")))
    assert (rebooted.boot_id, whats(rebooted)) == ("b2", ["joined", "rebooted"])


def test_a_clash_names_the_session_that_was_told_to_end(record) -> None:
    assert "session s0" in after(record, (10, Clashed("s0"))).history[-1].reason


def test_neighbouring_versions_are_understood_and_others_refused(record) -> None:
    assert [bool(refusal(PROTOCOL + d)) for d in (-2, -1, 0, 1, 2)] == [True, False, False, False, True]
    refused = after(record, (10, heard(refused=refusal(PROTOCOL + 2))))
    assert not is_fit(refused)
    assert "too new" in refused.refused
    assert is_fit(after(refused, (20, heard(session="s2"))))
    assert whats(after(refused, (20, heard()))) == ["joined", "refused", "accepted"]


def test_a_problem_is_told_once_however_it_is_worded_and_not_at_each_flicker(record) -> None:
    ill = after(record, (10, heard(problem="engine away")))
    assert (ill.problem, whats(ill)) == ("engine away", ["joined", "degraded"])
    assert step(ill, heard(problem="engine still away"), at(100), LIMITS) is None
    assert after(ill, (15, heard())).problem == "engine away"
    assert whats(after(ill, (45, heard()))) == ["joined", "degraded", "well"]


def test_a_history_keeps_the_last_lines(record) -> None:
    for n in range(50):
        record = after(record, (n, wished("cordon", reason=str(n))))
    assert len(record.history) == HISTORY_KEPT
    assert record.history[-1].reason == "49"


def test_a_prefetch_stays_in_the_record_until_the_node_has_done_it_or_says_why_not(record) -> None:
    image = Prefetch(id=f"p{'a' * 25}", image="repo:1")
    data = Prefetch(id=f"p{'b' * 25}", input=Input(source=f"artifact:a{'b' * 25}"))
    for one in (image, data, data):
        record = step(record, wished("prefetch", prefetch=one), START, LIMITS) or record
    assert record.prefetches == (image, data)
    ends = (PrefetchEnd(id=image.id), PrefetchEnd(id=data.id, error="no such thing"), PrefetchEnd(id="p-other"))
    facts = Heard(record.name, record.session, record.boot_id, 5, prefetched=ends)
    record = step(record, facts, START, LIMITS)
    assert record.prefetches == ()
    told = [(change.what, change.reason) for change in record.history[-2:]]
    assert told == [("prefetched", "repo:1"), ("not_prefetched", f"artifact:a{'b' * 25}: no such thing")]


def test_a_node_has_a_bounded_number_of_prefetches(record) -> None:
    for number in range(PREFETCHES_MAX + 1):
        one = Prefetch(id="p" + "abcdefghijklmnopqrstuvwxyz"[number] * 25, image="repo:1")
        record = step(record, wished("prefetch", prefetch=one), START, LIMITS)
    assert len(record.prefetches) == PREFETCHES_MAX
    assert record.history[-1].what == "not_prefetched"
