"""One node: its last heartbeat, and what is promised on it."""

from dataclasses import dataclass, field

from services.scheduler.core.need import CPU_UNIT
from shared.fleet import Gpu, Heartbeat, NodeInfo

#: A job's id and an attempt's number.
Key = tuple[str, int]


@dataclass(slots=True)
class Node:
    """What is known of a node.

    Attributes:
        slot: its row in the columns.
        beat: the last heartbeat; None for a node known only from jobs that are on it.
        seen: when it was last heard, in monotonic seconds.
        is_lost: silent for longer than its lease; its attempts were given up.
        jobs: the jobs whose current attempt it has, in the order of their placing.
        accepted: current attempts that it has held in a heartbeat: it can no longer not know them.
        missing: current attempts that it should hold and does not -> heartbeats in a row.
        woken: when it was last asked to heartbeat and has not done so since; None otherwise.
        ucpus, memory, disk: promised to its current attempts.
        cold_memory, cold_disk: the part of those that is not in use yet, because the program does not run yet.
        gpus: promised GPUs -> the job.
    """

    id: str
    slot: int
    seen: float
    beat: Heartbeat | None = None
    is_lost: bool = False
    jobs: dict[str, None] = field(default_factory=dict)
    accepted: set[Key] = field(default_factory=set)
    missing: dict[Key, int] = field(default_factory=dict)
    woken: float | None = None
    ucpus: int = 0
    memory: int = 0
    disk: int = 0
    cold_memory: int = 0
    cold_disk: int = 0
    gpus: dict[str, str] = field(default_factory=dict)

    @property
    def info(self) -> NodeInfo:
        """Return what the node is; a bare name as long as it has not said."""
        return self.beat.node if self.beat else NodeInfo(id=self.id, name=self.id, runtimes=())

    def free_ucpus(self) -> int:
        """Return the CPU that is not promised, in millionths."""
        return round(self.beat.capacity.cpus * CPU_UNIT) - self.ucpus if self.beat else 0

    def free_memory(self) -> int:
        """Return the memory in bytes that is neither promised nor really in use."""
        if self.beat is None:
            return 0
        # 0 is "not reported": no living machine has no memory available.
        available = self.beat.usage.memory_available or self.beat.capacity.memory
        return min(self.beat.capacity.memory - self.memory, available - self.cold_memory)

    def free_disk(self) -> int:
        """Return the disk in bytes that is neither promised nor really in use."""
        if self.beat is None:
            return 0
        free = self.beat.usage.disk_free or self.beat.capacity.disk
        return min(self.beat.capacity.disk - self.disk, free - self.cold_disk)

    def free_gpus(self) -> list[tuple[Gpu, int]]:
        """Return the GPUs promised to nobody with the memory in bytes that nobody uses."""
        if self.beat is None:
            return []
        return [
            (gpu, gpu.memory_total - gpu.memory_used) for gpu in self.beat.capacity.gpus if gpu.uuid not in self.gpus
        ]
