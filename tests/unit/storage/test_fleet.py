from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.storage.core import fleet as f
from services.storage.core.projections import Upsert
from shared.errors import WherryError
from shared.events import DeadLetter
from shared.fleet import Capacity, Heartbeat, NodeInfo, NodeRecord, Quota, QuotaSet
from shared.requests.administration import DeadLetterQuery
from shared.states import NodeCondition, NodeDuty

NOW = datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)


def heartbeat(node_id: str) -> Heartbeat:
    return Heartbeat(
        node=NodeInfo(id=node_id, name="box"), session="s", boot_id="b", seq=1,
        capacity=Capacity(cpus=2, memory=1, disk=1), problem="Docker does not answer", at=NOW,
    )  # fmt: skip


def record(**fields: Any) -> NodeRecord:
    return NodeRecord(**{"id": "n1", "name": "box", "since": NOW} | fields)


def document(*upserts: Upsert) -> dict[str, Any]:
    """Return what MongoDB has after these: the two sources have versions of their own."""
    found: dict[str, Any] = {"_id": upserts[0].id}
    for one in upserts:
        found |= one.fields | ({} if "record" in one.fields else {"seq": one.version})
    return found


def test_a_node_is_who_the_subject_says_it_is() -> None:
    upsert = f.node_upsert("n1", heartbeat("somebody-else"), NOW)
    assert (upsert.id, f.node_view(document(upsert), NOW, 1).node.id) == ("n1", "n1")
    recorded = f.record_upsert(4, "n1", record(id="somebody-else"))
    assert (recorded.id, '"somebody-else"' in recorded.fields["record"]) == ("n1", False)


@pytest.mark.parametrize(
    ("age_s", "nodes", "online"), [(30, 1, True), (31, 1, False), (59, 10_000, True), (61, 10_000, False)]
)
def test_a_node_is_online_while_it_is_heard_of(age_s: float, nodes: int, *, online: bool) -> None:
    whole = document(f.node_upsert("n1", heartbeat("n1"), NOW))
    assert f.node_view(whole, NOW + timedelta(seconds=age_s), nodes).online is online


@pytest.mark.parametrize("condition", NodeCondition)
def test_a_node_that_the_scheduler_has_given_up_is_not_online_however_fresh_its_word(condition: NodeCondition) -> None:
    whole = document(f.node_upsert("n1", heartbeat("n1"), NOW), f.record_upsert(1, "n1", record(condition=condition)))
    assert f.node_view(whole, NOW, 1).online is (condition in {NodeCondition.ONLINE, NodeCondition.SUSPECT})


def test_a_node_has_its_record_and_its_problem_in_either_order() -> None:
    said, recorded = f.node_upsert("n1", heartbeat("n1"), NOW), f.record_upsert(7, "n1", record(duty=NodeDuty.DRAINING))
    for whole in (document(said, recorded), document(recorded, said)):
        view = f.node_view(whole, NOW, 1)
        assert (view.problem, view.record and view.record.duty) == ("Docker does not answer", NodeDuty.DRAINING)


def test_a_node_of_which_no_heartbeat_is_known_is_shown_by_its_record() -> None:
    view = f.node_view(document(f.record_upsert(7, "n1", record(condition=NodeCondition.LOST))), NOW, 1)
    assert (view.node.id, view.node.name, view.online, view.capacity.cpus, view.seen_at) == ("n1", "box", False, 0, NOW)


def test_a_forgotten_node_is_hidden_until_it_joins_again() -> None:
    assert f.record_upsert(1, "n1", record(forgotten=True)).fields["forgotten"] is True
    assert f.record_upsert(2, "n1", record()).fields["forgotten"] is False


def test_a_quota_is_the_last_word_and_can_be_taken_away() -> None:
    quota = Quota(cpus=4, queued=0)
    upsert = f.quota_upsert(3, "u1", QuotaSet(quota=quota, by="root", at=NOW))
    assert (f.quota_of(upsert.fields), upsert.fields["queued"]) == (quota, 0)
    none = f.quota_upsert(4, "u1", QuotaSet(quota=None, by="root", at=NOW))
    assert (f.quota_of(none.fields), none.fields["queued"], f.quota_of(None)) == (None, None, None)


def test_a_dead_letter_that_comes_back_has_not_been_replayed() -> None:
    letter = DeadLetter(id="S.1.r", stream="S", seq=1, reader="r", target="a.b", reason="no", body="eA==", at=NOW)
    upsert = f.letter_upsert(9, letter)
    assert f.letter_view(upsert.fields | {"replayed_us": f.microseconds(NOW)}).replayed_at == NOW
    assert f.letter_view(upsert.fields).replayed_at is None
    assert f.letter_view(upsert.fields).letter == letter


def test_pages_go_on_where_they_ended_and_other_cursors_are_refused() -> None:
    view = f.node_view(document(f.node_upsert("n1", heartbeat("n1"), NOW)), NOW, 1)
    after = f.nodes_filter(f.nodes_cursor(view))
    assert after["$or"] == [{"name": {"$gt": "box"}}, {"name": "box", "_id": {"$gt": "n1"}}]
    assert f.nodes_filter(None) == f.SHOWN
    for wrong in ("nonsense", f.cursor_text(5, "n1"), f.cursor_text("a", "b", "c")):
        with pytest.raises(WherryError) as caught:
            f.nodes_filter(wrong)
        assert caught.value.fields[0].field == "cursor"
    with pytest.raises(WherryError):
        f.letters_filter(DeadLetterQuery(cursor=f.nodes_cursor(view)))
    assert f.letters_filter(DeadLetterQuery(reader="$ne")) == {"reader": {"$eq": "$ne"}}
