"""Which node runs a job: filter, then score. Says no with reasons, and by how much the closest node falls short."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from services.scheduler.core.fleet.columns import Columns, Floats, Mask
from services.scheduler.core.limits import Limits
from services.scheduler.core.need import CPU_UNIT, Need
from shared.fleet import NodeInfo
from shared.job import PendingReason
from shared.spec import GIB, KIB, MIB
from shared.states import PendingCode

_IMAGE_WEIGHT = 0.5
_LOAD_WEIGHT = 0.2
_SPARE_GPUS_WEIGHT = 1.0  # a job without GPUs goes to a GPU node only when there is no other
_FAILED_WEIGHT = 10.0  # more than all the others together: any other node is better


@dataclass(frozen=True, slots=True)
class Placement:
    """A node, the GPUs by UUID, and the parts of the score that chose it."""

    node: str
    gpus: tuple[str, ...]
    score: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no node will do. `is_possible`: one would, if it were healthy and nothing else were on it."""

    reasons: tuple[PendingReason, ...]
    is_possible: bool


class Trial:
    """Placements tried out on a copy of what is free; what is chosen is taken from the copy at once."""

    def __init__(self, columns: Columns, heard_after: float, limits: Limits) -> None:
        """Use only nodes that were heard after *heard_after*, in monotonic seconds."""
        self._columns = columns
        self._limits = limits
        self._alive: Mask = columns.seen >= heard_after
        self._cpus, self._memory, self._disk = columns.cpus.copy(), columns.memory.copy(), columns.disk.copy()
        self._gpus: Floats = columns.gpu_memory.copy()

    def place(self, need: Need, image: str | None, failed: frozenset[str]) -> Placement | None:
        """Return the best node for *need* and count it as taken, or None if no node will do.

        Args:
            need: what must hold.
            image: the container image; a node that has it is better.
            failed: nodes where the job came to nothing before; used only if no other will do.
        """
        rows = np.flatnonzero(self.feasible(need))
        if not rows.size:
            return None
        parts = self._score(rows, need, image, failed)
        total = sum(parts.values(), np.zeros(rows.size))
        best = int(np.argmax(total))
        slot = int(rows[best])
        node = self._columns.nodes[slot]
        assert node is not None  # noqa: S101 - an empty row was never heard
        score = {name: round(float(part[best]), 4) for name, part in parts.items() if part[best]}
        return Placement(node.id, self._take(slot, need), score | {"total": round(float(total[best]), 4)})

    def feasible(self, need: Need) -> Mask:
        """Return which rows will do."""
        mask = self._columns.with_labels(need, lambda info: not missing_label(info, need)) & self._alive
        mask &= (self._cpus >= need.ucpus) & (self._memory >= need.memory) & (self._disk >= need.disk)
        if need.gpus:
            mask &= self._usable_gpus(need).sum(axis=1) >= need.gpus
        return mask

    def _usable_gpus(self, need: Need) -> Mask:
        return self._columns.usable_gpus(need, self._limits, self._gpus)

    def _score(self, rows: np.ndarray, need: Need, image: str | None, failed: frozenset[str]) -> dict[str, np.ndarray]:
        columns = self._columns
        free = (self._cpus[rows] - need.ucpus) / columns.total_cpus[rows]
        free += (self._memory[rows] - need.memory) / columns.total_memory[rows]
        packed = 1 - free / 2  # 1 is a full node
        parts: dict[str, np.ndarray] = {
            need.policy: packed if need.policy == "pack" else 1 - packed,
            "load": -_LOAD_WEIGHT * columns.load[rows],
        }
        if image is not None:
            parts["image"] = np.where(columns.with_image(image)[rows], _IMAGE_WEIGHT, 0.0)
        if not need.gpus and columns.gpu_total.any():
            parts["spares_gpus"] = np.where((columns.gpu_total[rows] > 0).any(axis=1), -_SPARE_GPUS_WEIGHT, 0.0)
        if failed:
            ids = (node.id for node in (columns.nodes[row] for row in rows) if node is not None)
            parts["failed_here"] = -_FAILED_WEIGHT * np.fromiter((i in failed for i in ids), np.float64, rows.size)
        return parts

    def _take(self, slot: int, need: Need) -> tuple[str, ...]:
        self._cpus[slot] -= need.ucpus
        self._memory[slot] -= need.memory
        self._disk[slot] -= need.disk
        if not need.gpus:
            return ()
        usable = np.flatnonzero(self._usable_gpus(need)[slot])
        # The smallest that will do: the large ones stay for who needs them.
        chosen = usable[np.argsort(self._gpus[slot, usable], kind="stable")][: need.gpus]
        self._gpus[slot, chosen] = -1
        node = self._columns.nodes[slot]
        assert node is not None  # noqa: S101
        assert node.beat is not None  # noqa: S101
        return tuple(node.beat.capacity.gpus[int(index)].uuid for index in chosen)


def missing_label(info: NodeInfo, need: Need) -> PendingCode | None:
    """Return the first of the things a node is, rather than has, that does not suit *need*."""
    if need.node is not None and need.node not in (info.id, info.name):
        return PendingCode.NODE_NAME
    if need.cluster is not None and need.cluster != info.cluster:
        return PendingCode.CLUSTER
    if need.arch is not None and need.arch != info.arch:
        return PendingCode.ARCH
    if not set(need.tags) <= set(info.tags):
        return PendingCode.TAGS
    if need.runtime not in info.runtimes:
        return PendingCode.RUNTIME
    return None


def explain(columns: Columns, need: Need, heard_after: float, limits: Limits) -> Refusal:
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
    alive = [row for row in suited if columns.seen[row] >= heard_after]
    if silent := len(suited) - len(alive):
        reasons.append(_reason(PendingCode.NODE_UNHEALTHY, silent, f"{silent} suitable node(s) are silent"))
    resources, is_possible = _resources(columns, np.array(alive, dtype=int), need, limits)
    return Refusal((*resources, *reasons), is_possible or not alive)


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
    wanted = f"needs {need.gpus} GPU(s)"
    count = (columns.gpu_total[rows] > 0).sum(axis=1)
    large = (columns.gpu_total[rows] >= max(1, need.gpu_memory)).sum(axis=1)
    usable = columns.usable_gpus(need, limits, columns.gpu_memory)[rows].sum(axis=1)
    if too_few := int((count < need.gpus).sum()):
        message = f"{wanted}; the node with most has {int(count.max())}"
        reasons.append(_reason(PendingCode.GPUS, too_few, message))
    if too_small := int(((large < need.gpus) & (count >= need.gpus)).sum()):
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
