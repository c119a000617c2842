import base64
from datetime import UTC, datetime
from typing import Any

from services.gateway.core import translate_fleet
from shared.events import DeadLetter
from shared.fleet import Capacity, Gpu, NodeChange, NodeInfo, NodeRecord, Quota, Usage
from shared.requests.administration import DeadLetterView, QuotaView
from shared.requests.nodes import NodeView
from shared.states import NodeCondition, NodeDuty

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def node(name: str, cluster: str = "default", **fields: Any) -> NodeView:
    capacity = Capacity(cpus=2, memory=4, disk=6, gpus=(Gpu(uuid="g", name="RTX", memory_total=8),))
    whole = {
        "node": NodeInfo(id=name, name=name, cluster=cluster), "capacity": capacity,
        "usage": Usage(), "attempts": ({"job_id": "j", "attempt": 1},), "seen_at": NOW, "online": True,
    }  # fmt: skip
    return NodeView.model_validate(whole | fields)


def test_a_node_without_a_record_is_what_its_heartbeats_tell() -> None:
    assert translate_fleet.condition(node("a")) is NodeCondition.ONLINE
    assert translate_fleet.condition(node("a", online=False)) is NodeCondition.SUSPECT
    assert translate_fleet.duty(node("a")) is NodeDuty.ACTIVE
    lost = NodeRecord(id="a", since=NOW, condition=NodeCondition.LOST, duty=NodeDuty.CORDONED)
    assert (translate_fleet.condition(node("a", record=lost)), translate_fleet.duty(node("a", record=lost))) == (
        NodeCondition.LOST,
        NodeDuty.CORDONED,
    )


def test_who_did_what_to_a_node_is_for_administrators_who_look_at_it() -> None:
    record = NodeRecord(id="a", since=NOW, reason="disk", history=(NodeChange(at=NOW, what="draining", by="root"),))
    for whole, history, shown in ((True, True, True), (True, False, False), (False, True, False)):
        view = translate_fleet.node(node("a", record=record), whole=whole, history=history)
        assert (view.history is not None, view.reason) == (shown, "disk")


def test_a_clusters_sums_are_of_the_nodes_that_are_there() -> None:
    found = translate_fleet.clusters([node("c", "west"), node("a", "east"), node("b", "east", online=False)]).clusters
    assert [(one.name, one.online, one.cpus, one.memory, one.gpus, one.gpu_memory, one.running) for one in found] == [
        ("east", 1, 2, 4, 1, 8, 1),
        ("west", 1, 2, 4, 1, 8, 1),
    ]
    assert [one.id for one in found[0].nodes] == ["a", "b"]
    assert translate_fleet.clusters([]).clusters == []


def test_a_quota_goes_there_and_back() -> None:
    quota = Quota(cpus=2.5, memory=10, queued=0, share=2)
    shown = translate_fleet.quota(QuotaView(quota=quota), "anna").quota
    assert shown is not None
    assert translate_fleet.wanted_quota(shown) == quota


def test_a_dead_letter_shows_its_text_however_broken() -> None:
    for body, text in ((base64.b64encode(b"{\xff}").decode(), "{�}"), ("", ""), ("a", "a")):
        letter = DeadLetter(id="i", stream="S", seq=1, reader="r", target="t", reason="no", body=body, at=NOW)
        assert translate_fleet.letter(DeadLetterView(letter=letter)).body == text
