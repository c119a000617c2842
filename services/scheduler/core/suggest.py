"""One change of a spec that would let its job start. Candidates are few, and each is tried before it is told."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from services.scheduler.core.closest import amount
from services.scheduler.core.fleet.columns import Columns, Floats, Mask
from services.scheduler.core.limits import Limits
from services.scheduler.core.need import CPU_UNIT, Need, need_of
from services.scheduler.core.placement import Trial, suited
from services.scheduler.core.words import count
from shared.requests.explain import Suggestion
from shared.spec import MIB, JobSpec
from shared.states import PendingCode

#: Fields of a spec, dotted -> their new values.
Change = dict[str, Any]

_CPUS_MIN = 0.01
_MEMORY_MIN = 6 * MIB


def suggest(spec: JobSpec, columns: Columns, trial: Trial, heard_after: float, limits: Limits) -> Suggestion | None:
    """Return a small change with which a job of *spec* could start now, else once a node is empty, or None.

    Args:
        spec: what does not fit.
        columns: the fleet.
        trial: what is free; it is left as it was.
        heard_after: nodes that were silent since do not count, in monotonic seconds.
        limits: the core's.
    """

    def fits(need: Need, image: str | None) -> bool:
        mark = trial.mark()
        found = trial.place(need, image, frozenset())
        trial.undo(mark)
        return found is not None

    free = _Room(columns, trial.feasible, columns.cpus, columns.memory, columns.disk, columns.gpu_memory, limits)
    for change in free.changes(spec):
        changed = apply(spec, change)
        if changed is not None and fits(need_of(changed), changed.image):
            return Suggestion(set=change, message=f"With {_words(change)} it could start now.")

    def empty(need: Need) -> Mask:
        return suited(columns, need, heard_after, limits)

    if empty(need_of(spec)).any():
        return None  # it only has to wait
    totals = columns.total_cpus, columns.total_memory, columns.total_disk, columns.gpu_total
    for change in _Room(columns, empty, *totals, limits).changes(spec):
        changed = apply(spec, change)
        if changed is not None and empty(need_of(changed)).any():
            return Suggestion(set=change, message=f"With {_words(change)} it could start once a node has that free.")
    return None


def apply(spec: JobSpec, change: Change) -> JobSpec | None:
    """Return *spec* with the dotted fields of *change* set, or None where that is no valid spec."""
    fields = spec.model_dump()
    for path, value in change.items():
        *folders, last = path.split(".")
        inner = fields
        for folder in folders:
            inner = inner[folder]
        inner[last] = value
    try:
        return JobSpec.model_validate(fields)
    except ValidationError:
        return None


@dataclass(frozen=True, slots=True)
class _Room:
    """What there is, free or in all, and which rows would do for a need by that."""

    columns: Columns
    feasible: Callable[[Need], Mask]
    cpus: Floats
    memory: Floats
    disk: Floats
    gpu_memory: Floats
    limits: Limits

    def changes(self, spec: JobSpec) -> Iterator[Change]:
        """Yield changes, the smaller first: less of one thing, a label less, less of several, a label less and less."""
        need = need_of(spec)
        yield from self._less(need)
        yield from _fewer_labels(spec)
        if (several := self._less_of_all(need)) is not None:
            yield several
        for change in _fewer_labels(spec):
            changed = apply(spec, change)
            if changed is not None:
                yield from ({**change, **less} for less in self._less(need_of(changed)))

    def _less(self, need: Need) -> list[Change]:
        """Return how much of each thing would do if all the rest stayed, the smallest cut first."""
        found = [*self._amounts(need), *(self._gpus(need) if need.gpus else ())]
        return [change for _, change in sorted(found, key=lambda one: one[0])]

    def _amounts(self, need: Need) -> Iterator[tuple[float, Change]]:
        for name, field, there, unit, step, least in (
            ("ucpus", "resources.cpus", self.cpus, CPU_UNIT, 0.01, _CPUS_MIN),
            ("memory", "resources.memory", self.memory, 1, MIB, _MEMORY_MIN),
            ("disk", "resources.disk", self.disk, 1, MIB, MIB),
        ):
            wanted = getattr(need, name) / unit
            rows = np.flatnonzero(self.feasible(need._replace(**{name: 0})))
            best = _floored(float(there[rows].max()) / unit, step) if rows.size else 0
            if least <= best < wanted:
                yield 1 - best / wanted, {field: best}

    def _gpus(self, need: Need) -> Iterator[tuple[float, Change]]:
        rows = np.flatnonzero(self.feasible(need._replace(gpus=0)))
        if not rows.size:
            return
        most = int(self.columns.usable_gpus(need, self.limits, self.gpu_memory)[rows].sum(axis=1).max())
        if 0 < most < need.gpus:
            yield 1 - most / need.gpus, {"resources.gpus": most}
        elif most == 0:
            yield 2, {"resources.gpus": 0, "resources.gpu_memory": 0}
        if need.gpu_memory and need.gpus <= self.gpu_memory.shape[1]:
            nth = np.sort(self.gpu_memory[rows], axis=1)[:, -need.gpus]
            best = int(_floored(float(nth.max()), MIB))
            if MIB <= best < need.gpu_memory:
                yield 1 - best / need.gpu_memory, {"resources.gpu_memory": best}

    def _less_of_all(self, need: Need) -> Change | None:
        """Return the amounts that the node has which comes closest with all of them together."""
        rows = np.flatnonzero(self.feasible(need._replace(ucpus=0, memory=0, disk=0)))
        if not rows.size:
            return None
        parts = ((need.ucpus, self.cpus), (need.memory, self.memory), (need.disk, self.disk))
        lacking = sum(
            (np.maximum(0, wanted - there[rows]) / max(wanted, 1) for wanted, there in parts), np.zeros(rows.size)
        )
        row = int(rows[int(lacking.argmin())])
        change: Change = {}
        if self.cpus[row] < need.ucpus:
            change["resources.cpus"] = _floored(float(self.cpus[row]) / CPU_UNIT, 0.01)
        if self.memory[row] < need.memory:
            change["resources.memory"] = _floored(float(self.memory[row]), MIB)
        if self.disk[row] < need.disk:
            change["resources.disk"] = _floored(float(self.disk[row]), MIB)
        return change or None


def _fewer_labels(spec: JobSpec) -> Iterator[Change]:
    wanted = spec.placement
    if len(wanted.tags) > 1:
        for tag in wanted.tags:
            yield {"placement.tags": [one for one in wanted.tags if one != tag]}
    if wanted.tags:
        yield {"placement.tags": []}
    for field in ("arch", "cluster", "node"):
        if getattr(wanted, field) is not None:
            yield {f"placement.{field}": None}
    if spec.runtime == "docker" and spec.command is not None:
        yield {"runtime": "process", "image": None}
    if spec.network == "api":
        yield {"network": "none"}


def _floored(value: float, step: float) -> float | int:
    steps = math.floor(value / step + 1e-9)
    return steps * step if isinstance(step, int) else round(steps * step, 2)


def _words(change: Change) -> str:
    return " and ".join(said for field, value in change.items() if (said := _phrase(field, value)))


def _phrase(field: str, value: Any) -> str:
    match field:
        case "resources.cpus":
            return f"{value:g} cpus"
        case "resources.memory" | "resources.disk":
            return f"{amount(PendingCode.MEMORY, value)} of {field.removeprefix('resources.')}"
        case "resources.gpus":
            return count(value, "GPU") if value else "no GPU"
        case "resources.gpu_memory":
            return f"{amount(PendingCode.MEMORY, value)} on each GPU" if value else ""
        case "placement.tags":
            return f"only the tags {', '.join(value)}" if value else "no tags"
        case "runtime":
            return "the bare machine (runtime process) instead of a container"
        case "network":
            return "no network"
        case "image":
            return ""
        case _:
            return f"any {field.removeprefix('placement.')}"
