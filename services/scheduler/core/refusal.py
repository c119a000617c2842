"""Why a job fits nowhere: the reasons, with how many nodes each rules out."""

from dataclasses import dataclass

import numpy as np

from services.scheduler.core.fleet.columns import Columns, Mask
from services.scheduler.core.limits import Limits
from services.scheduler.core.need import CPU_UNIT, Need
from services.scheduler.core.placement import missing_label
from services.scheduler.core.words import count
from shared.job import PendingReason
from shared.spec import GIB, KIB, MIB
from shared.states import PendingCode


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no node will do. `is_possible`: one would, if it were healthy and nothing else were on it."""

    reasons: tuple[PendingReason, ...]
    is_possible: bool


def refuse(columns: Columns, need: Need, heard_after: float, limits: Limits) -> Refusal:
    """Return why *need* fits nowhere now, with how many nodes each reason rules out.

    What a node is comes first: resources are compared only on nodes that would suit otherwise.
    """
    rows = [node.slot for node in columns.nodes if node is not None and node.beat is not None]
    if not rows:
        return Refusal((_reason(PendingCode.NO_NODES, 0, "no node has joined yet"),), is_possible=True)
    labels: dict[PendingCode, int] = {}
    suited: list[int] = []
    for row in rows:
        node = columns.nodes[row]
        code = missing_label(node.info, need) if node is not None else None
        if code is None:
            suited.append(row)
        else:
            labels[code] = labels.get(code, 0) + 1
    reasons = [_reason(code, count, _label_message(code, need)) for code, count in labels.items()]
    if not suited:
        return Refusal(tuple(reasons), is_possible=False)
    unusable, alive = _usable(columns, suited, heard_after)
    reasons += unusable
    resources, is_possible = _resources(columns, np.array(alive, dtype=int), need, limits)
    return Refusal((*resources, *reasons), is_possible or not alive)


def _usable(columns: Columns, rows: list[int], heard_after: float) -> tuple[list[PendingReason], list[int]]:
    """Return why some of *rows* get nothing new whatever is free on them, and the others."""
    is_open = [row for row in rows if not columns.closed[row]]
    alive = [row for row in is_open if columns.seen[row] >= heard_after]
    reasons: list[PendingReason] = []
    if cordoned := len(rows) - len(is_open):
        message = f"{count(cordoned, 'suitable node is', 'suitable nodes are')} cordoned or drained"
        reasons.append(_reason(PendingCode.NODE_CORDONED, cordoned, message))
    if silent := len(is_open) - len(alive):
        nodes = count(silent, "suitable node is", "suitable nodes are")
        message = f"{nodes} silent, not back for long, or of another version"
        reasons.append(_reason(PendingCode.NODE_UNHEALTHY, silent, message))
    return reasons, alive


def _resources(columns: Columns, rows: np.ndarray, need: Need, limits: Limits) -> tuple[list[PendingReason], bool]:
    reasons: list[PendingReason] = []
    possible = np.ones(rows.size, dtype=np.bool_)
    for code, wanted, free, total in (
        (PendingCode.CPUS, need.ucpus, columns.cpus, columns.total_cpus),
        (PendingCode.MEMORY, need.memory, columns.memory, columns.total_memory),
        (PendingCode.DISK, need.disk, columns.disk, columns.total_disk),
    ):
        short = int((free[rows] < wanted).sum())
        possible &= total[rows] >= wanted
        if short:
            message = _amount_message(code, wanted, float(free[rows].max()), float(total[rows].max()))
            reasons.append(_reason(code, short, message))
    if need.gpus and rows.size:
        possible &= _gpu_reasons(columns, rows, need, limits, reasons)
    return reasons, bool(possible.any())


def _gpu_reasons(columns: Columns, rows: np.ndarray, need: Need, limits: Limits, reasons: list[PendingReason]) -> Mask:
    wanted = f"needs {count(need.gpus, 'GPU')}"
    there = (columns.gpu_total[rows] > 0).sum(axis=1)
    large = (columns.gpu_total[rows] >= max(1, need.gpu_memory)).sum(axis=1)
    usable = columns.usable_gpus(need, limits, columns.gpu_memory)[rows].sum(axis=1)
    if too_few := int((there < need.gpus).sum()):
        message = f"{wanted}; the node with most has {int(there.max())}"
        reasons.append(_reason(PendingCode.GPUS, too_few, message))
    if too_small := int(((large < need.gpus) & (there >= need.gpus)).sum()):
        largest = _bytes(float(columns.gpu_total[rows].max()))
        message = f"{wanted} with {_bytes(need.gpu_memory)} each; the largest GPU has {largest}"
        reasons.append(_reason(PendingCode.GPU_MEMORY, too_small, message))
    if busy := int(((usable < need.gpus) & (large >= need.gpus)).sum()):
        message = f"{wanted}; {int(usable.max())} are free on the node with most, the others are promised or filled"
        reasons.append(_reason(PendingCode.GPUS, busy, message))
    return large >= need.gpus


def _reason(code: PendingCode, nodes: int, message: str) -> PendingReason:
    return PendingReason(code=code, nodes=nodes, message=message)


def _label_message(code: PendingCode, need: Need) -> str:
    if code is PendingCode.NODE_NAME:
        return f"only the node {need.node} will do"
    if code is PendingCode.CLUSTER:
        return f"only cluster {need.cluster} will do"
    if code is PendingCode.ARCH:
        return f"needs {need.arch}"
    if code is PendingCode.TAGS:
        return f"needs a node with the tags {', '.join(need.tags)}"
    if code is PendingCode.NETWORK:
        return "needs a node that gives containers network api: one that has the image of its WHERRY_RELAY_IMAGE"
    return f"needs a node that can run {need.runtime} jobs now"


def _amount_message(code: PendingCode, wanted: int, free: float, total: float) -> str:
    show = _cpus if code is PendingCode.CPUS else _bytes
    unit = {PendingCode.CPUS: " cpus", PendingCode.MEMORY: " of memory", PendingCode.DISK: " of disk"}[code]
    if wanted > total:
        return f"needs {show(wanted)}{unit}; the largest node has {show(total)}"
    return f"needs {show(wanted)}{unit}; {show(max(0.0, free))} are free on the node with most"


def _cpus(amount: float) -> str:
    return f"{amount / CPU_UNIT:g}"


def _bytes(amount: float) -> str:
    for size, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if amount >= size:
            return f"{amount / size:.4g} {unit}"
    return f"{amount:g} bytes"
