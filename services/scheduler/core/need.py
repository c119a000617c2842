"""What a job asks of a node, in whole numbers: exact sums, and a key that groups equal jobs."""

import math
from typing import NamedTuple

from shared.spec import JobSpec

#: CPUs are counted in millionths, so that ten times 0.1 is 1.
CPU_UNIT = 1_000_000


class Need(NamedTuple):
    """The requirements that decide whether a node will do. Jobs with equal needs fit or wait together.

    `lasts_s` is the longest that an attempt may hold all this, in seconds: what ends soon may go before a larger job.
    """

    ucpus: int
    memory: int
    disk: int
    gpus: int
    gpu_memory: int
    runtime: str
    arch: str | None
    tags: tuple[str, ...]
    cluster: str | None
    node: str | None
    policy: str
    lasts_s: float = math.inf

    @property
    def labels(self) -> tuple[str, str | None, tuple[str, ...], str | None, str | None]:
        """Return the part that only what a node is can answer, whatever it is doing."""
        return self.runtime, self.arch, self.tags, self.cluster, self.node


def need_of(spec: JobSpec) -> Need:
    """Return what an attempt of *spec* needs."""
    resources, placement, timeouts = spec.resources, spec.placement, spec.timeouts
    return Need(
        ucpus=round(resources.cpus * CPU_UNIT),
        memory=resources.memory,
        disk=resources.disk,
        gpus=resources.gpus,
        gpu_memory=resources.gpu_memory,
        runtime=spec.runtime,
        arch=placement.arch,
        tags=tuple(sorted(placement.tags)),
        cluster=placement.cluster,
        node=placement.node,
        policy=placement.policy,
        lasts_s=min(timeouts.pull + timeouts.stage_in + timeouts.run, timeouts.total),
    )
