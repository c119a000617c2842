"""What a job asks of a node, in whole numbers: exact sums, and a key that groups equal jobs."""

import math
from typing import NamedTuple

from shared.fleet import input_key
from shared.spec import JobSpec, Resources

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
    #: Of a gang: what its members need, by rank; all of them at once. Everything else here is then the largest of them.
    members: tuple["Need", ...] = ()
    connected: bool = False  # of a gang: its members must be where they reach each other
    api: bool = False  # its program reaches its own data through the node

    @property
    def jobs(self) -> int:
        """Return how many attempts this stands for."""
        return len(self.members) or 1

    def whole(self) -> "Need":
        """Return the same with what all members of a gang need together."""
        if not self.members:
            return self
        return self._replace(
            ucpus=sum(member.ucpus for member in self.members),
            memory=sum(member.memory for member in self.members),
            disk=sum(member.disk for member in self.members),
            gpus=sum(member.gpus for member in self.members),
        )

    def hardest(self) -> "Need":
        """Return what the largest member of a gang needs: unlike the gang's own figures, something that is wanted."""
        return max(self.members, key=lambda member: (member.gpus, member.ucpus, member.memory), default=self)

    @property
    def labels(self) -> tuple[str, str | None, tuple[str, ...], str | None, str | None, bool]:
        """Return the part that only what a node is can answer, whatever it is doing."""
        return self.runtime, self.arch, self.tags, self.cluster, self.node, self.api


#: Inputs whose bytes are known before the job starts: the key under which nodes keep each, and its size in bytes.
Inputs = tuple[tuple[str, int], ...]


def inputs_of(spec: JobSpec) -> Inputs:
    """Return the inputs of *spec* whose bytes are known, each once."""
    if not spec.inputs:
        return ()
    known = (one for one in spec.inputs.values() if one.sha256 is not None and one.stage)
    return tuple({input_key(one.sha256 or "", unpack=one.unpack): one.size or 0 for one in known}.items())


def need_of(spec: JobSpec) -> Need:
    """Return what an attempt of *spec* needs."""
    if spec.gang is None:
        return _one(spec, spec.resources)
    roles = zip(spec.members(), spec.gang.roles.values(), strict=True)
    members = [_one(spec, full.resources or spec.resources) for full, role in roles for _ in range(role.count)]
    return members[0]._replace(
        ucpus=max(member.ucpus for member in members),
        memory=max(member.memory for member in members),
        disk=max(member.disk for member in members),
        gpus=max(member.gpus for member in members),
        gpu_memory=max(member.gpu_memory for member in members),
        members=tuple(members),
        connected=spec.gang.connected,
    )


def _one(spec: JobSpec, resources: Resources) -> Need:
    placement, timeouts = spec.placement, spec.timeouts
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
        api=spec.network == "api",
        lasts_s=min(timeouts.pull + timeouts.stage_in + timeouts.run, timeouts.total),
    )
