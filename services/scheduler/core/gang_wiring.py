"""What the members of a connected gang are told of each other, and which of them wait for others to run.

All of it follows from the gang's record: a scheduler that takes over tells the same.
"""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import chain

from services.scheduler.core.fleet.state import State, Tracked
from services.scheduler.core.gang_network import Network
from services.scheduler.core.lifecycle import HOLDING
from services.scheduler.core.limits import Limits
from shared.fleet import Peer, Wiring
from shared.job import GangMember, Job
from shared.spec import GangRole
from shared.states import JobState

#: Of each member on a bridge, where nothing else can be in its way.
BRIDGE_PORT = 2222
_HAS_RUN = frozenset({JobState.RUNNING, JobState.FINISHING, JobState.SUCCEEDED})


def wired(
    gang: Job, network: Network | None, addresses: Mapping[str, str], others: Iterable[Job], limits: Limits
) -> Job | None:
    """Return a gang that was just placed with the address of each member; None if there are not enough ports.

    Args:
        gang: with its members, and the number of its round.
        network: what connects them.
        addresses: of the nodes, by id.
        others: gangs that may have ports on the same machines.
        limits: which ports there are.
    """
    if network is None or gang.spec.gang is None:
        return gang.model_copy(update={"network": None})
    roles = gang.spec.gang.roles
    if network == "bridge":
        members = [
            one.model_copy(update={"host": f"{one.role}-{one.index}", "port": BRIDGE_PORT}) for one in gang.members
        ]
        return gang.model_copy(update={"network": network, "members": tuple(members)})
    used: dict[str, set[int]] = {}
    for other in others:
        if other.id != gang.id and other.network == "host" and other.state in HOLDING and other.spec.gang is not None:
            for one in other.members:
                count = other.spec.gang.roles[one.role].ports
                used.setdefault(one.host, set()).update(range(one.port, one.port + count))
    begin = _begin(gang, limits)
    found: list[GangMember] = []
    for one in gang.members:
        host, count = addresses[one.node], roles[one.role].ports
        taken = used.setdefault(host, set())
        port = _free(taken, count, begin, limits)
        if port is None:
            return None
        taken.update(range(port, port + count))
        found.append(one.model_copy(update={"host": host, "port": port}))
    return gang.model_copy(update={"network": network, "members": tuple(found)})


def wiring(state: State, member: Job) -> Wiring | None:
    """Return how *member* reaches the others of its gang; None if it is of none that is connected."""
    gang = _gang_of(state, member)
    if gang is None or gang.network is None or gang.spec.gang is None or member.member_of is None:
        return None
    roles = gang.spec.gang.roles
    peers = tuple(
        Peer(role=one.role, index=one.index, rank=rank, host=one.host, port=one.port, ports=roles[one.role].ports)
        for rank, one in enumerate(gang.members)
    )
    return Wiring(gang_id=gang.id, round=gang.attempt, network=gang.network, peers=peers, rank=member.member_of.rank)


def is_withheld(state: State, member: Job) -> bool:
    """Return whether *member* is not to be started yet, because others of its gang have to run before it."""
    gang = _gang_of(state, member)
    if gang is None or member.member_of is None:
        return False
    role = _role(gang, member.member_of.role)
    return role is not None and any(
        one.role in role.start_after and not _has_run(state.jobs.get(one.job_id), one) for one in gang.members
    )


def released(state: State, gang: Job) -> set[str]:
    """Return the nodes of members that had to wait for others and are to be started now."""
    if gang.spec.gang is None or not any(role.start_after for role in gang.spec.gang.roles.values()):
        return set()
    members = (state.jobs.get(one.job_id) for one in gang.members if gang.spec.gang.roles[one.role].start_after)
    waiting = (one.job for one in members if one is not None and one.job.state is JobState.PLACED)
    return {job.attempts[-1].node for job in waiting if not is_withheld(state, job)}


def others(state: State, drafted: Iterable[Job]) -> Iterable[Job]:
    """Give the gangs that are placed, with those of this turn."""
    return chain((state.jobs[gang_id].job for gang_id in state.gangs.placed), drafted)


def _gang_of(state: State, member: Job) -> Job | None:
    place = member.member_of
    tracked = state.jobs.get(place.gang_id) if place is not None else None
    if place is None or tracked is None or tracked.job.spec.gang is None or tracked.job.attempt != place.round:
        return None
    return tracked.job


def _role(gang: Job, name: str) -> GangRole | None:
    return gang.spec.gang.roles.get(name) if gang.spec.gang is not None else None


def _has_run(tracked: Tracked | None, member: GangMember) -> bool:
    return (tracked.job.state if tracked is not None else member.state) in _HAS_RUN


def _begin(gang: Job, limits: Limits) -> int:
    """Return a port to begin with: another one in each round, for what a lost node still runs keeps its own."""
    name = f"{gang.id} {gang.attempt}".encode()
    first, last = limits.gang_ports
    return first + int.from_bytes(hashlib.sha256(name).digest()[:4]) % (last - first + 1)


def _free(taken: set[int], count: int, begin: int, limits: Limits) -> int | None:
    first, last = limits.gang_ports
    for port in chain(range(begin, last + 2 - count), range(first, min(begin, last + 2 - count))):
        if not any(port + offset in taken for offset in range(count)):
            return port
    return None
