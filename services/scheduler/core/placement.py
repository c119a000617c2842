"""Which node runs a job: filter, then score."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.scheduler.core.fleet.columns import Columns, Floats, Mask
from services.scheduler.core.limits import Limits
from services.scheduler.core.need import Inputs, Need
from shared.fleet import NodeInfo
from shared.states import PendingCode

_IMAGE_WEIGHT = 0.5
_LOAD_WEIGHT = 0.2
#: The most that inputs on the spot count: more than all but a failure. Half of it is saved by so many seconds less.
_INPUTS_WEIGHT, _INPUTS_HALF_S = 4.0, 5.0
_INPUT_BYTES_PER_S = 100e6  # at which a node brings what it does not have: assumed, for no link is known to be slower
_SPARE_GPUS_WEIGHT = 1.0  # a job without GPUs goes to a GPU node only when there is no other
_BESIDE_WEIGHT = 6.0  # replicas are spread: more than all but a failure
_FAILED_WEIGHT = 10.0  # more than all the others together: any other node is better
_NONE, _NOTHING = np.zeros(0, np.intp), np.zeros(0)
_IMPOSSIBLE = np.float32(-1e30)  # a score that no other comes near; to add it is quicker than to choose
_SCORES_KEPT = 4  # needs whose scores are remembered; with many more needs than these they are hardly used again
_RESCORED_MAX = 8  # rows that are scored one by one; more are quicker all at once


Scores = NDArray[np.float32]
_Bytes = TypeVar("_Bytes", float, Floats)


@dataclass(frozen=True, slots=True)
class Placement:
    """A node, the GPUs by UUID, and the parts of the score that chose it."""

    node: str
    gpus: tuple[str, ...]
    score: Mapping[str, float]


class Trial:
    """Placements tried out on a copy of what is free; what is chosen is taken from the copy at once.

    The best node is found by looking at all of them, as vectors. The scores for a need are kept until the next with the
    same need, and only the rows that were taken from in between are scored anew: thousands of equal jobs, the usual
    case, cost a search for a maximum each.
    """

    def __init__(self, columns: Columns, heard_after: float, limits: Limits) -> None:
        """Use only nodes that were heard after *heard_after*, in monotonic seconds."""
        self._columns = columns
        self._limits = limits
        self._alive: Mask = (columns.seen >= heard_after) & ~columns.closed
        self._cpus, self._memory, self._disk = columns.cpus.copy(), columns.memory.copy(), columns.disk.copy()
        for free in (self._cpus, self._memory, self._disk):
            free[~self._alive] = 0  # nobody needs none of it
        self._gpus: Floats = columns.gpu_memory.copy()
        self._has_gpus = columns.gpus > 0
        self._usable: dict[int, Floats] = {}  # GPU memory wanted -> per node, how many GPUs will do
        # Scores are compared, never added up for long: half the bytes are twice as quick.
        self._per_cpu, self._per_memory = columns.per_cpu.astype(np.float32), columns.per_memory.astype(np.float32)
        self._bases: dict[tuple[str, bool], Scores] = {}  # by policy, and whether nodes with GPUs are spared
        self._bonuses: dict[str, Scores] = {}  # by image
        self._scores: dict[tuple[Need, str | None, Inputs], _Scores] = {}
        self._taken: list[_Taken] = []
        self._touched: list[int] = []
        self._kept: Kept | None = None
        self._most_upto = 0
        self._most: tuple[float, ...] | None = None  # the most CPUs, memory and disk of any node when last looked at

    def may_fit(self, need: Need) -> bool:
        """Return False if no node has as much of one thing as *need* wants: quickly, for most of a long queue."""
        if self._most is None:
            self._most = tuple(float(free.max(initial=0)) for free in (self._cpus, self._memory, self._disk))
            self._most_upto = len(self._touched)
        cpus, memory, disk = self._most
        return need.ucpus <= cpus and need.memory <= memory and need.disk <= disk

    def place(
        self,
        need: Need,
        image: str | None,
        failed: frozenset[str],
        inputs: Inputs = (),
        only: Mask | None = None,
        beside: Collection[str] = (),
    ) -> Placement | None:
        """Return the best node for *need* and count it as taken, or None if no node will do.

        Args:
            need: what must hold.
            image: the container image; a node that has it is better.
            failed: nodes where the job came to nothing before; used only if no other will do.
            inputs: what the job reads; a node that has it need not bring it.
            only: the rows that may be used, where not all may.
            beside: nodes that have another replica of the same; one that has none is better, once for each.
        """
        values = self._scored(need, image, inputs).values
        if only is not None:
            values = np.where(only, values, _IMPOSSIBLE)
        rows = [row for node in failed if (row := self._columns.slots.get(node)) is not None]
        others = [row for node in beside if (row := self._columns.slots.get(node)) is not None]
        if rows or others:
            values = values.copy()
            values[rows] -= _FAILED_WEIGHT
            np.subtract.at(values, others, np.float32(_BESIDE_WEIGHT))
        slot = int(values.argmax()) if values.size else 0
        if not values.size or values[slot] <= _IMPOSSIBLE / 2:
            if self._most_upto < len(self._touched):
                self._most = None
            return None
        node = self._columns.nodes[slot]
        assert node is not None  # noqa: S101 - an empty row was never heard
        parts = self._parts(slot, need, image, inputs, has_failed=slot in rows, beside=others.count(slot))
        gpus = self._take(slot, need)
        return Placement(node.id, gpus, parts)

    def mark(self) -> int:
        """Return a mark to which `undo` goes back."""
        return len(self._taken)

    def undo(self, mark: int) -> None:
        """Give back all that was taken since *mark*: all or nothing."""
        while len(self._taken) > mark:
            taken = self._taken.pop()
            slot, need = taken.slot, taken.need
            if need.gpus:
                self._gpus[slot, taken.gpus] = taken.gpu_memory
            if self._kept is not None and taken.is_spare:
                self._kept.give(need)
            self._most = None
            self._change(slot, need, 1)

    def commit(self) -> list[int]:
        """Take from the columns what was taken here, and return the rows: they are then to be refreshed.

        Else what was given back elsewhere in the meantime would not be seen as gained: the sum may be the same.
        """
        slots = list({taken.slot for taken in self._taken})
        columns = self._columns
        columns.cpus[slots], columns.memory[slots] = self._cpus[slots], self._memory[slots]
        columns.disk[slots], columns.gpu_memory[slots] = self._disk[slots], self._gpus[slots]
        return slots

    def keep(self, kept: "Kept") -> None:
        """Keep the room of a node for another: from now on only what leaves that alone may use it."""
        self._kept = kept
        self._touched.append(kept.slot)

    def is_kept_out(self, need: Need) -> bool:
        """Return whether *need* would fit where room is kept."""
        kept = self._kept
        return kept is not None and not kept.lets_in(need) and self._fits(kept.slot, need)

    def free(self, slot: int, need: Need) -> tuple[float, float, float, float]:
        """Return what a row has left of CPUs, memory, disk and GPUs that would do for *need*."""
        gpus = float(self._usable_gpus(need)[slot]) if need.gpus else 0.0
        return float(self._cpus[slot]), float(self._memory[slot]), float(self._disk[slot]), gpus

    def lacking(self, need: Need) -> Floats:
        """Return how much each row lacks for *need*, in parts of what it has in all."""
        columns = self._columns
        lacking = np.maximum(0, need.ucpus - self._cpus) * columns.per_cpu
        lacking += np.maximum(0, need.memory - self._memory) * columns.per_memory
        return lacking

    def taken_from(self, slots: Iterable[int]) -> dict[int, list[Need]]:
        """Return what was taken from each of *slots*."""
        taken: dict[int, list[Need]] = {slot: [] for slot in slots}
        for one in self._taken:
            if one.slot in taken:
                taken[one.slot].append(one.need)
        return taken

    def feasible(self, need: Need) -> Mask:
        """Return which rows will do."""
        mask = self._columns.with_labels(need, lambda info: not missing_label(info, need)) & self._alive
        mask &= self._cpus >= need.ucpus
        mask &= self._memory >= need.memory
        mask &= self._disk >= need.disk
        if need.gpus:
            mask &= self._usable_gpus(need) >= need.gpus
        if self._kept is not None and not self._kept.lets_in(need):
            mask[self._kept.slot] = False
        return mask

    def _fits(self, slot: int, need: Need) -> bool:
        labels = self._columns.with_labels(need, lambda info: not missing_label(info, need))
        return bool(
            labels[slot]
            and self._alive[slot]
            and self._cpus[slot] >= need.ucpus
            and self._memory[slot] >= need.memory
            and self._disk[slot] >= need.disk
            and (not need.gpus or self._usable_gpus(need)[slot] >= need.gpus)
        )

    def _scored(self, need: Need, image: str | None, inputs: Inputs) -> "_Scores":
        """Return the score of each row for *need*, or what is impossible where it will not do."""
        scores = self._scores.get((need, image, inputs))
        if scores is None:
            if len(self._scores) >= _SCORES_KEPT:
                del self._scores[next(iter(self._scores))]
            scores = _Scores(self._score(need, image, inputs), len(self._touched))
            self._scores[need, image, inputs] = scores
            return scores
        changed = self._touched[scores.upto :]
        if len(changed) <= _RESCORED_MAX:
            for slot in changed:
                scores.values[slot] = self._score_one(slot, need, image, inputs)
        else:
            scores.values = self._score(need, image, inputs)
        scores.upto = len(self._touched)
        return scores

    def _score(self, need: Need, image: str | None, inputs: Inputs) -> Scores:
        columns, mask = self._columns, self.feasible(need)
        if not mask.any():
            return np.full(mask.size, _IMPOSSIBLE)
        sign = 0.5 if need.policy == "pack" else -0.5
        values = self._per_cpu * np.float32(sign * need.ucpus)
        values += self._per_memory * np.float32(sign * need.memory)
        values += self._base(need)
        if image is not None:
            bonus = self._bonuses.get(image)
            if bonus is None:
                bonus = self._bonuses[image] = columns.with_image(image) * np.float32(_IMAGE_WEIGHT)
            values += bonus
        if inputs:
            missing = np.full(mask.size, float(_bytes_of(inputs)))
            for key, size in inputs:
                missing[list(columns.with_input(key))] -= size
            values += (_cost(_bytes_of(inputs)) - _cost(missing)).astype(np.float32)
        values += ~mask * _IMPOSSIBLE
        return values

    def _base(self, need: Need) -> Scores:
        """Return the part of the scores that is the same for many needs: how full and how busy a node is, its GPUs."""
        base = self._bases.get((need.policy, not need.gpus))
        if base is None:
            full = self._fullness(slice(None))
            base = (full if need.policy == "pack" else 1 - full) - _LOAD_WEIGHT * self._columns.load
            if not need.gpus:
                base -= _SPARE_GPUS_WEIGHT * self._has_gpus
            base = self._bases[need.policy, not need.gpus] = base.astype(np.float32)
        return base

    def _fullness(self, rows: slice | int) -> Floats:
        """Return how full nodes are, as it counts for the score: 1 is a full node."""
        columns = self._columns
        free = self._cpus[rows] * columns.per_cpu[rows] + self._memory[rows] * columns.per_memory[rows]
        return 1 - free / 2

    def _saved(self, slot: int, inputs: Inputs) -> float:
        """Return what it counts that a row has some of *inputs*, by the time that bringing them would take."""
        missing = sum(size for key, size in inputs if slot not in self._columns.with_input(key))
        return _cost(_bytes_of(inputs)) - _cost(missing)

    def _score_one(self, slot: int, need: Need, image: str | None, inputs: Inputs) -> float:
        if not self._fits(slot, need) or (
            self._kept is not None and slot == self._kept.slot and not self._kept.lets_in(need)
        ):
            return float(_IMPOSSIBLE)
        return sum(self._raw_parts(slot, need, image, inputs).values())

    def _raw_parts(self, slot: int, need: Need, image: str | None, inputs: Inputs) -> dict[str, float]:
        """Return what `_score` adds up for one row: the same in words."""
        columns = self._columns
        full = float(self._fullness(slot))
        full += (need.ucpus * float(columns.per_cpu[slot]) + need.memory * float(columns.per_memory[slot])) / 2
        parts = {
            need.policy: full if need.policy == "pack" else 1 - full,
            "load": -_LOAD_WEIGHT * float(columns.load[slot]),
        }
        if image is not None and columns.with_image(image)[slot]:
            parts["image"] = _IMAGE_WEIGHT
        if inputs and (saved := self._saved(slot, inputs)):
            parts["inputs"] = saved
        if not need.gpus and self._has_gpus[slot]:
            parts["spares_gpus"] = -_SPARE_GPUS_WEIGHT
        return parts

    def _parts(
        self, slot: int, need: Need, image: str | None, inputs: Inputs, *, has_failed: bool, beside: int
    ) -> dict[str, float]:
        parts = self._raw_parts(slot, need, image, inputs)
        if has_failed:
            parts["failed_here"] = -_FAILED_WEIGHT
        if beside:
            parts["other_replicas"] = -_BESIDE_WEIGHT * beside
        told = {name: round(part, 4) for name, part in parts.items() if part}
        return told | {"total": round(sum(parts.values()), 4)}

    def _usable_gpus(self, need: Need) -> Floats:
        usable = self._usable.get(need.gpu_memory)
        if usable is None:
            usable = self._columns.usable_gpus(need, self._limits, self._gpus).sum(axis=1, dtype=np.float64)
            self._usable[need.gpu_memory] = usable
        return usable

    def _take(self, slot: int, need: Need) -> tuple[str, ...]:
        kept = self._kept
        is_spare = kept is not None and kept.slot == slot and kept.uses_spare(need)
        if kept is not None and is_spare:
            kept.take(need)
        chosen = self._choose_gpus(slot, need) if need.gpus else _NONE
        self._taken.append(_Taken(slot, need, chosen, self._gpus[slot, chosen] if need.gpus else _NOTHING, is_spare))
        if need.gpus:
            self._gpus[slot, chosen] = -1
        self._change(slot, need, -1)
        node = self._columns.nodes[slot]
        if not need.gpus or node is None or node.beat is None:
            return ()
        return tuple(node.beat.capacity.gpus[int(index)].uuid for index in chosen)

    def _choose_gpus(self, slot: int, need: Need) -> NDArray[np.intp]:
        usable = np.flatnonzero(self._columns.usable_gpus(need, self._limits, self._gpus, slot))
        # The smallest that will do: the large ones stay for who needs them.
        return usable[np.argsort(self._gpus[slot, usable], kind="stable")][: need.gpus]

    def _change(self, slot: int, need: Need, sign: int) -> None:
        columns = self._columns
        self._cpus[slot] += sign * need.ucpus
        self._memory[slot] += sign * need.memory
        self._disk[slot] += sign * need.disk
        fuller = -sign * (need.ucpus * float(columns.per_cpu[slot]) + need.memory * float(columns.per_memory[slot])) / 2
        for (policy, _), base in self._bases.items():
            base[slot] += fuller if policy == "pack" else -fuller
        if need.gpus:
            for memory, usable in self._usable.items():
                wanted = need._replace(gpu_memory=memory)
                usable[slot] = columns.usable_gpus(wanted, self._limits, self._gpus, slot).sum()
        self._touched.append(slot)


def _bytes_of(inputs: Inputs) -> int:
    return sum(size for _, size in inputs)


def _cost(missing: _Bytes) -> _Bytes:
    """Return what it counts against a node that so many bytes have to be brought there first."""
    seconds = missing / _INPUT_BYTES_PER_S
    return _INPUTS_WEIGHT * seconds / (seconds + _INPUTS_HALF_S)


@dataclass(slots=True)
class Kept:
    """Room of a node that is kept for a job: who may use the node all the same.

    Attributes:
        slot: the node's row.
        within_s: what ends sooner than in so many seconds may; minus infinity: nothing may for that reason.
        cpus, memory, disk: what the job leaves over once it runs there; who needs no more than that may use it.
        with_gpus: whether that holds for who needs GPUs too.
    """

    slot: int
    within_s: float
    cpus: float
    memory: float
    disk: float
    with_gpus: bool

    def lets_in(self, need: Need) -> bool:
        """Return whether *need* may use the node."""
        return need.lasts_s < self.within_s or self._is_spare(need)

    def uses_spare(self, need: Need) -> bool:
        """Return whether *need* may use it because it needs no more than is left over."""
        return need.lasts_s >= self.within_s

    def take(self, need: Need) -> None:
        """Count *need* among what is left over no longer."""
        self.cpus, self.memory, self.disk = self.cpus - need.ucpus, self.memory - need.memory, self.disk - need.disk

    def give(self, need: Need) -> None:
        """Undo `take`."""
        self.cpus, self.memory, self.disk = self.cpus + need.ucpus, self.memory + need.memory, self.disk + need.disk

    def _is_spare(self, need: Need) -> bool:
        fits = need.ucpus <= self.cpus and need.memory <= self.memory and need.disk <= self.disk
        return fits and (self.with_gpus or not need.gpus)


@dataclass(slots=True)
class _Scores:
    """The score of each row for one need, as of the first *upto* rows that were taken from."""

    values: Scores
    upto: int


class _Taken(NamedTuple):
    slot: int
    need: Need
    gpus: NDArray[np.intp]
    gpu_memory: Floats
    is_spare: bool


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
    if need.api and need.runtime not in info.api:
        return PendingCode.NETWORK
    return None


def suited(columns: Columns, need: Need, heard_after: float, limits: Limits) -> Mask:
    """Return which rows would do for *need* if nothing were on them."""
    mask = columns.with_labels(need, lambda info: not missing_label(info, need)) & ~columns.closed
    mask &= columns.seen >= heard_after
    mask &= columns.total_cpus >= need.ucpus
    mask &= columns.total_memory >= need.memory
    mask &= columns.total_disk >= need.disk
    if need.gpus:
        mask &= columns.usable_gpus(need, limits, columns.gpu_total).sum(axis=1) >= need.gpus
    return mask


def fits_somewhere(columns: Columns, need: Need, heard_after: float, limits: Limits) -> bool:
    """Return whether a node would do for *need*, alone, as things are."""
    mask = suited(columns, need, heard_after, limits)
    mask &= (columns.cpus >= need.ucpus) & (columns.memory >= need.memory) & (columns.disk >= need.disk)
    if need.gpus:
        mask &= columns.usable_gpus(need, limits, columns.gpu_memory).sum(axis=1) >= need.gpus
    return bool(mask.any())


def could_hold(columns: Columns, need: Need, heard_after: float, limits: Limits, only: Mask | None = None) -> bool:
    """Return whether all members of a gang would fit at once, each on the first node that will do, without our jobs.

    What others use of the nodes is not counted on: nobody knows when that ends. *only*: the rows that may be used.
    """
    held = np.zeros((4, len(columns.nodes)))
    for node in columns.nodes:
        if node is not None and node.jobs:
            held[:, node.slot] = node.ucpus, node.memory, node.disk, len(node.gpus)
    cpus, memory, disk = columns.cpus + held[0], columns.memory + held[1], columns.disk + held[2]
    gpus = held[3]
    for member in need.members:
        free_gpus = columns.usable_gpus(member, limits, columns.gpu_memory).sum(axis=1) + gpus
        mask = suited(columns, member, heard_after, limits) & (free_gpus >= member.gpus)
        mask &= (cpus >= member.ucpus) & (memory >= member.memory) & (disk >= member.disk)
        if only is not None:
            mask &= only
        if not mask.any():
            return False
        slot = int(mask.argmax())
        cpus[slot] -= member.ucpus
        memory[slot] -= member.memory
        disk[slot] -= member.disk
        gpus[slot] -= member.gpus
    return True
