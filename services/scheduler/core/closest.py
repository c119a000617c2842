"""How close nodes come to what a job needs: what the best of the others lack, and by how much."""

from collections.abc import Iterator

import numpy as np

from services.scheduler.core.fleet.columns import Columns
from services.scheduler.core.fleet.node import Node
from services.scheduler.core.limits import Limits
from services.scheduler.core.need import CPU_UNIT, Need
from services.scheduler.core.placement import missing_label
from shared.requests.explain import NodeFit, Shortfall
from shared.spec import GIB, KIB, MIB
from shared.states import PendingCode

_WORDS = {
    PendingCode.NODE_NAME: "it is another node than the one asked for",
    PendingCode.CLUSTER: "it is in another cluster",
    PendingCode.ARCH: "it has another architecture",
    PendingCode.TAGS: "it has not all of the tags",
    PendingCode.RUNTIME: "it cannot run jobs of this runtime now",
    PendingCode.NETWORK: "it has not the image that network api needs (WHERRY_RELAY_IMAGE)",
    PendingCode.NODE_CORDONED: "it is cordoned or drained",
    PendingCode.NODE_UNHEALTHY: "it is silent, not back for long, or speaks another version",
}
_UNITS = {
    PendingCode.CPUS: "cpus",
    PendingCode.MEMORY: "of memory",
    PendingCode.DISK: "of disk",
    PendingCode.GPUS: "GPUs",
    PendingCode.GPU_MEMORY: "on each GPU",
}


def closest(columns: Columns, need: Need, heard_after: float, limits: Limits, count: int) -> tuple[NodeFit, ...]:
    """Return the *count* nodes that come closest to *need*, the closest first, of those that have said what they have.

    Close is what lacks little of what is wanted: all of a resource counts as much as a label that does not suit.
    """
    rows = np.array([node.slot for node in columns.nodes if node is not None and node.beat is not None], dtype=int)
    if not rows.size:
        return ()
    suits = columns.with_labels(need, lambda info: not missing_label(info, need))[rows]
    lacking = (~suits).astype(float) + (columns.seen[rows] < heard_after) + columns.closed[rows]
    for wanted, free in ((need.ucpus, columns.cpus), (need.memory, columns.memory), (need.disk, columns.disk)):
        lacking += np.clip(wanted - free[rows], 0, max(wanted, 1)) / max(wanted, 1)
    if need.gpus:
        usable = columns.usable_gpus(need, limits, columns.gpu_memory)[rows].sum(axis=1)
        lacking += np.clip(need.gpus - usable, 0, need.gpus) / need.gpus
    best = rows[np.argsort(lacking, kind="stable")][:count]
    nodes = (columns.nodes[int(row)] for row in best)
    return tuple(_fit(columns, node, need, heard_after, limits) for node in nodes if node is not None)


def amount(code: PendingCode, value: float) -> str:
    """Return *value* of a resource, in the spec's unit, for people."""
    if code in (PendingCode.CPUS, PendingCode.GPUS):
        return f"{value:g}"
    for size, unit in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:g} bytes"


def _fit(columns: Columns, node: Node, need: Need, heard_after: float, limits: Limits) -> NodeFit:
    lacks = tuple(_lacks(columns, node, need, heard_after, limits))
    message = "; ".join(map(_sentence, lacks)) or "it would do"
    return NodeFit(node=node.id, name=node.info.name, lacks=lacks, message=message)


def _lacks(columns: Columns, node: Node, need: Need, heard_after: float, limits: Limits) -> Iterator[Shortfall]:
    slot = node.slot
    if (code := missing_label(node.info, need)) is not None:
        yield Shortfall(code=code)
    if columns.closed[slot]:
        yield Shortfall(code=PendingCode.NODE_CORDONED)
    elif columns.seen[slot] < heard_after:
        yield Shortfall(code=PendingCode.NODE_UNHEALTHY)
    for code, wanted, free, total, unit in (
        (PendingCode.CPUS, need.ucpus, columns.cpus, columns.total_cpus, CPU_UNIT),
        (PendingCode.MEMORY, need.memory, columns.memory, columns.total_memory, 1),
        (PendingCode.DISK, need.disk, columns.disk, columns.total_disk, 1),
    ):
        if free[slot] < wanted:
            there = max(0.0, float(free[slot]))
            yield Shortfall(code=code, wanted=wanted / unit, free=there / unit, total=float(total[slot]) / unit)
    if need.gpus:
        yield from _lacking_gpus(columns, slot, need, limits)


def _lacking_gpus(columns: Columns, slot: int, need: Need, limits: Limits) -> Iterator[Shortfall]:
    usable = int(columns.usable_gpus(need, limits, columns.gpu_memory, slot).sum())
    if usable >= need.gpus:
        return
    free, total = np.sort(columns.gpu_memory[slot])[::-1], np.sort(columns.gpu_total[slot])[::-1]
    if need.gpu_memory and int((free >= 0).sum()) >= need.gpus:  # enough GPUs, and too little memory on them
        last = need.gpus - 1
        code, wanted = PendingCode.GPU_MEMORY, need.gpu_memory
        yield Shortfall(code=code, wanted=wanted, free=float(free[last]), total=float(total[last]))
    else:
        yield Shortfall(code=PendingCode.GPUS, wanted=need.gpus, free=usable, total=int((total > 0).sum()))


def _sentence(lack: Shortfall) -> str:
    if lack.code in _WORDS:
        return _WORDS[lack.code]
    wanted, free, total = (amount(lack.code, value) for value in (lack.wanted, lack.free, lack.total))
    return f"wanted {wanted} {_UNITS[lack.code]}; {free} of its {total} are free"
