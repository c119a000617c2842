"""From messages to what clients see: nodes, clusters, explanations, quotas, dead letters."""

import base64
import binascii
from collections.abc import Iterable

from services.gateway.core import translate, views, views_administration, views_fleet
from shared.fleet import NodeRecord, Prefetch, Quota
from shared.job import Job
from shared.requests.administration import DeadLetterView, QuotaView
from shared.requests.explain import Explanation, NodeFit
from shared.requests.nodes import NodeView
from shared.states import NodeCondition, NodeDuty


def node(item: NodeView, *, whole: bool, history: bool = False) -> views_fleet.NodeDocument:
    """Return a machine; *whole*: with what it runs and holds, which tells of other people's work."""
    info, capacity, usage, record = item.node, item.capacity, item.usage, item.record
    return views_fleet.NodeDocument(
        id=info.id, name=info.name, cluster=info.cluster, tags=list(info.tags), arch=info.arch, os=info.os,
        agent_version=info.agent_version, runtimes=list(info.runtimes), engine=info.engine, online=item.online,
        condition=condition(item), since=record.since if record else None, duty=duty(item),
        reason=record.reason if record else "", deadline=record.deadline if record else None,
        refused=record.refused if record else "", problem=item.problem, seen_at=item.seen_at,
        running=len(item.attempts),
        capacity=views_fleet.CapacityView(
            cpus=capacity.cpus, memory=capacity.memory, disk=capacity.disk, gpus=list(capacity.gpus)
        ),
        usage=views_fleet.UsageView(
            cpu_percent=usage.cpu_percent, load1=usage.load1, memory_available=usage.memory_available,
            disk_free=usage.disk_free,
        ),
        attempts=list(item.attempts) if whole else None, images=list(item.images) if whole else None,
        inputs=list(item.inputs) if whole else None,
        prefetches=[_wanted(one) for one in record.prefetches] if whole and record else None,
        history=_history(record) if whole and history else None,
    )  # fmt: skip


def _wanted(prefetch: Prefetch) -> str:
    return prefetch.input.source if prefetch.input else prefetch.image or ""


def condition(item: NodeView) -> NodeCondition:
    """Return whether a machine is heard: as the scheduler has it, else as its heartbeats tell."""
    if item.record is not None:
        return item.record.condition
    return NodeCondition.ONLINE if item.online else NodeCondition.SUSPECT


def duty(item: NodeView) -> NodeDuty:
    """Return whether a machine is to get work."""
    return item.record.duty if item.record else NodeDuty.ACTIVE


def _history(record: NodeRecord | None) -> list[views_fleet.NodeChangeView]:
    changes = record.history if record else ()
    return [views_fleet.NodeChangeView(at=one.at, what=one.what, by=one.by, reason=one.reason) for one in changes]


def clusters(nodes: Iterable[NodeView]) -> views_fleet.ClustersDocument:
    """Return every cluster with its machines; the sums are over those that are online."""
    by_name: dict[str, list[NodeView]] = {}
    for one in nodes:
        by_name.setdefault(one.node.cluster, []).append(one)
    return views_fleet.ClustersDocument(clusters=[_cluster(name, by_name[name]) for name in sorted(by_name)])


def _cluster(name: str, members: list[NodeView]) -> views_fleet.ClusterView:
    there = [one for one in members if one.online]
    gpus = [gpu for one in there for gpu in one.capacity.gpus]
    return views_fleet.ClusterView(
        name=name,
        nodes=[
            views_fleet.ClusterNode(id=one.node.id, name=one.node.name, condition=condition(one), duty=duty(one))
            for one in members
        ],
        online=len(there), cpus=sum(one.capacity.cpus for one in there),
        memory=sum(one.capacity.memory for one in there), disk=sum(one.capacity.disk for one in there),
        gpus=len(gpus), gpu_memory=sum(gpu.memory_total for gpu in gpus),
        running=sum(len(one.attempts) for one in there),
    )  # fmt: skip


def explanation(item: Explanation, job: Job | None = None) -> views.ExplanationView:
    """Return why *job*, or one that is not handed in, waits or is where it is."""
    change = item.suggestion
    return views.ExplanationView(
        job_id=job.id if job else None, state=item.state, would_start=item.would_start, never=item.never,
        node=item.node, score=item.score, reasons=translate.pending(item.reasons),
        closest=[_fit(one) for one in item.closest], ahead=item.ahead, queue_length=item.queue_length,
        suggestion=views.SuggestionView(set=change.set, message=change.message) if change else None,
        nodes_considered=item.nodes_considered, error=translate.failure(job.error) if job else None, text=item.text,
    )  # fmt: skip


def _fit(item: NodeFit) -> views.FitView:
    lacks = [views.LackView(code=one.code, wanted=one.wanted, free=one.free, total=one.total) for one in item.lacks]
    return views.FitView(node=item.node, name=item.name, lacks=lacks, message=item.message)


def quota(item: QuotaView, user: str) -> views_administration.QuotaDocument:
    """Return a user's quota."""
    limits = views_administration.QuotaLimits(**item.quota.model_dump()) if item.quota else None
    return views_administration.QuotaDocument(user=user, quota=limits, by_state=item.by_state)


def wanted_quota(limits: views_administration.QuotaLimits) -> Quota:
    """Return a quota as it is recorded."""
    return Quota(**limits.model_dump())


def letter(item: DeadLetterView) -> views_administration.LetterView:
    """Return a dead letter. Its body may be anything: what is no text is shown as replacement characters."""
    sent = item.letter
    try:
        body = base64.b64decode(sent.body).decode(errors="replace")
    except binascii.Error:
        body = sent.body
    return views_administration.LetterView(
        id=sent.id, reader=sent.reader, stream=sent.stream, seq=sent.seq, subject=sent.target, reason=sent.reason,
        at=sent.at, replayed_at=item.replayed_at, body=body,
    )  # fmt: skip
