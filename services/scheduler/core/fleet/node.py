"""One node: its last heartbeat, and what is promised on it."""

from dataclasses import dataclass, field
from datetime import datetime

from services.scheduler.core.need import CPU_UNIT
from shared.fleet import Gpu, Heartbeat, NodeInfo

#: A job's id and an attempt's number.
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Delivered:
    """An attempt whose last report its node knows to be in the log, while the job still waits for it.

    Attributes:
        mark: a sequence that must have been read before heartbeats count.
        since: when the first one counted, in monotonic seconds.
        beats: how many have counted.
    """

    mark: int
    since: float
    beats: int = 0

    def once_more(self, mono: float, *, has_read: bool) -> "Delivered":
        """Return it after another heartbeat that says so."""
        if not has_read:
            return self
        return Delivered(self.mark, self.since if self.beats else mono, self.beats + 1)


@dataclass(slots=True)
class Node:
    """What is known of a node.

    Attributes:
        slot: its row in the columns.
        beat: the last heartbeat; None for a node known only from jobs that are on it.
        seen: when it was last heard, in monotonic seconds.
        is_lost: silent for longer than its lease; its attempts were given up.
        steady: heartbeats in a row without a longer gap between them.
        former: sessions that were replaced by a newer one -> how often they were heard since.
        is_open: it is to get new work; neither cordoned nor drained.
        is_fit: it can be trusted with new work, by its record.
        empty_from: when what still runs on it is to be stopped and placed elsewhere; None: never.
        was_emptied: that time had come at the last tick.
        jobs: the jobs whose current attempt it has, in the order of their placing.
        accepted: current attempts that it has held in a heartbeat: it can no longer not know them.
        missing: current attempts that it should hold and does not -> heartbeats in a row.
        delivered: current attempts that it holds as ended and reported.
        back: since when it has been heard without a gap, in monotonic seconds.
        died: when it was last heard before its last reboot, if that is known, in monotonic seconds.
        lease_s: the longest lease that this leader has granted it; 0 before the first.
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
    steady: int = 0
    former: dict[str, int] = field(default_factory=dict)
    is_open: bool = True
    is_fit: bool = True
    empty_from: datetime | None = None
    was_emptied: bool = False
    jobs: dict[str, None] = field(default_factory=dict)
    accepted: set[Key] = field(default_factory=set)
    missing: dict[Key, int] = field(default_factory=dict)
    delivered: dict[Key, Delivered] = field(default_factory=dict)
    back: float = 0.0
    died: float | None = None
    lease_s: float = 0.0
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
