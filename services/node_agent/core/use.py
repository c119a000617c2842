"""What an attempt uses of its node, as series that stand beside its own: ``system.cpu``, ``system.memory`` and GPUs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from services.node_agent.core.series import SYSTEM
from shared.events import MetricPoint
from shared.fleet import Gpu

_NS = 10**9


@dataclass(frozen=True, slots=True)
class Use:
    """One look at a program and all its children. CPU seconds since its start, memory in bytes without file cache."""

    cpu_s: float
    memory: int
    pids: frozenset[int] = frozenset()  # as the machine counts them; none where nobody knows


@dataclass(frozen=True, slots=True)
class GpuUse:
    """The GPUs of the machine, and the bytes that processes have on each, by UUID."""

    gpus: Sequence[Gpu] = ()
    processes: Mapping[str, Mapping[int, int]] = field(default_factory=dict[str, Mapping[int, int]])


def use_in_stats(stats: Mapping[str, Any]) -> Use | None:
    """Return what an engine's statistics of a container say; None where it does not run."""
    memory, cpu = stats.get("memory_stats") or {}, (stats.get("cpu_stats") or {}).get("cpu_usage") or {}
    if "usage" not in memory or "total_usage" not in cpu:
        return None
    details = memory.get("stats") or {}
    cache = details.get("total_inactive_file", details.get("inactive_file", 0))
    return Use(cpu["total_usage"] / _NS, max(0, memory["usage"] - cache))


def points(
    before: tuple[datetime, Use] | None, at: datetime, use: Use, held: Sequence[str], look: GpuUse
) -> list[MetricPoint]:
    """Return what *use* at *at* means: processors in use since *before*, bytes, and of each GPU in *held* its share."""
    found = {"memory": float(use.memory)}
    if before is not None and (seconds := (at - before[0]).total_seconds()) > 0:
        found["cpu"] = max(0.0, use.cpu_s - before[1].cpu_s) / seconds
    by_uuid = {gpu.uuid: gpu for gpu in look.gpus}
    for number, uuid in enumerate(held):
        if (gpu := by_uuid.get(uuid)) is not None:
            found[f"gpu{number}.memory"] = float(_gpu_memory(gpu, use.pids, look))
            found[f"gpu{number}.utilisation"] = gpu.utilisation
    return [MetricPoint(name=f"{SYSTEM}{name}", value=value, at=at) for name, value in found.items()]


def _gpu_memory(gpu: Gpu, pids: frozenset[int], look: GpuUse) -> int:
    own = [size for pid, size in look.processes.get(gpu.uuid, {}).items() if pid in pids]
    return sum(own) if own else gpu.memory_used  # a GPU is promised to one attempt alone
