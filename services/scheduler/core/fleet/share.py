"""Who has had how much of the fleet, lately and now: what decides between owners of equal priority, and their quotas.

An owner's share is the dominant one (Ghodsi et al., Dominant Resource Fairness, NSDI 2011): the largest of the parts of
the fleet's CPUs, memory and GPUs that the owner's jobs hold. What an owner has had is the mean of that share, in which
a second counts half as much for every half-life that it lies back (as in HTCondor's PRIORITY_HALFLIFE, a day there too,
and in Slurm's PriorityDecayHalfLife). The sum of both decides: the mean makes up for the past, and the present share
lets owners take turns from one placement to the next, long before any time has been used.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.scheduler.core.need import CPU_UNIT, Need
from services.scheduler.core.words import count
from shared.fleet import Quota
from shared.spec import GIB

#: CPUs in millionths, bytes of memory, and GPUs.
Amounts = tuple[float, float, float]

_NO_QUOTA = Quota()
_NEGLIGIBLE = 1e-6  # of the fleet: less is not worth remembering


@dataclass(slots=True)
class Holding:
    """What one owner's jobs hold, and the mean share lately as of `at_s`, in seconds since 1970."""

    ucpus: int = 0
    memory: int = 0
    gpus: int = 0
    jobs: int = 0
    lately: float = 0.0
    at_s: float = 0.0

    def change(self, need: Need, sign: int) -> None:
        """Hold one attempt more (*sign* 1) or less (-1)."""
        self.ucpus += sign * need.ucpus
        self.memory += sign * need.memory
        self.gpus += sign * need.gpus
        self.jobs += sign * need.jobs


class Shares:
    """The holdings of all owners who hold something or did so lately.

    Attributes:
        fleet: all that the fleet has.
        quotas: by owner; whoever has none may take all there is.
    """

    def __init__(self, half_life_s: float, settled_s: float) -> None:
        """Take the fleet for whole only from *settled_s* on, in seconds since 1970: before, not all were heard."""
        self.fleet: Amounts = (0.0, 0.0, 0.0)
        self.quotas: dict[str, Quota] = {}
        self._half_life_s = half_life_s
        self._settled_s = settled_s
        self._owners: dict[str, Holding] = {}
        self._carried_s = 0.0
        self._uncounted: list[tuple[str, Need, float]] = []

    def measure(self, fleet: Amounts, at_s: float) -> None:
        """Take *fleet* for all there is, and make up for what nobody could count without knowing that."""
        self.fleet = fleet
        if self._uncounted and at_s >= self._settled_s:
            for owner, need, held_s in self._uncounted:
                part = dominant((need.ucpus, need.memory, need.gpus), fleet)
                holding = self._touched(owner, at_s)
                holding.lately = min(1.0, holding.lately + part * (1 - self._kept(held_s)))
            self._uncounted.clear()

    def hold(self, owner: str, need: Need, sign: int, at_s: float) -> None:
        """Note that *owner* holds an attempt more (*sign* 1) or less (-1) from *at_s* on."""
        self._touched(owner, at_s).change(need, sign)

    def held_before(self, owner: str, need: Need, since_s: float, at_s: float) -> None:
        """Note that an attempt had been held since *since_s* when this scheduler, at *at_s*, came to know of it."""
        self._uncounted.append((owner, need, at_s - max(since_s, self._carried_s)))

    def holding(self, owner: str) -> Holding:
        """Return what *owner* holds."""
        return self._owners.get(owner) or Holding()

    def lately(self, owner: str, at_s: float) -> float:
        """Return the mean share that *owner* has had up to *at_s*, 0 to 1."""
        held = self._owners.get(owner)
        if held is None:
            return 0.0
        kept = self._kept(at_s - held.at_s)
        return held.lately * kept + dominant((held.ucpus, held.memory, held.gpus), self.fleet) * (1 - kept)

    def carried(self, at_s: float) -> dict[str, float]:
        """Return what a snapshot has to keep: the mean shares at *at_s*, by owner. Forgets who has had next to none."""
        for owner in [o for o, held in self._owners.items() if not held.jobs and held.lately < _NEGLIGIBLE]:
            del self._owners[owner]
        return {owner: self.lately(owner, at_s) for owner in self._owners}

    def restore(self, lately: Mapping[str, float], at_s: float) -> None:
        """Begin with what `carried` had returned at *at_s*."""
        self._carried_s = at_s
        for owner, share in lately.items():
            self._owners[owner] = Holding(lately=share, at_s=at_s)

    def weight(self, owner: str) -> float:
        """Return by how much more than others *owner* is to have."""
        return self.quotas.get(owner, _NO_QUOTA).share

    def _touched(self, owner: str, at_s: float) -> Holding:
        holding = self._owners.get(owner)
        if holding is None:
            holding = self._owners[owner] = Holding(at_s=at_s)
        elif at_s > holding.at_s:
            holding.lately, holding.at_s = self.lately(owner, at_s), at_s
        return holding

    def _kept(self, seconds: float) -> float:
        return 0.5 ** (max(0.0, seconds) / self._half_life_s)


class Ledger:
    """The shares as one turn sees them: what it has decided counts at once, though nobody believes it yet."""

    def __init__(self, shares: Shares, at_s: float) -> None:
        self._shares = shares
        self._at_s = at_s
        self._owners: dict[str, tuple[Holding, float, float]] = {}

    def charge(self, owner: str, need: Need) -> None:
        """Count an attempt with *need* as held by *owner*."""
        self._of(owner)[0].change(need.whole(), 1)

    def rank(self, owner: str) -> float:
        """Return how much *owner* has and has had, by weight: the smallest goes first."""
        held, lately, weight = self._of(owner)
        return (lately + dominant((held.ucpus, held.memory, held.gpus), self._shares.fleet)) / weight

    def over_quota(self, owner: str, need: Need) -> str | None:
        """Return what one more attempt with *need* would be too much of, as a sentence; None if it would not."""
        quota = self._shares.quotas.get(owner)
        if quota is None:
            return None
        held, need = self._of(owner)[0], need.whole()
        if quota.running is not None and held.jobs + need.jobs > quota.running:
            return f"the quota is {count(quota.running, 'job')} at a time, and {count(held.jobs, 'is', 'are')} on nodes"
        if quota.cpus is not None and held.ucpus + need.ucpus > round(quota.cpus * CPU_UNIT):
            return _beyond("cpus", quota.cpus, held.ucpus / CPU_UNIT, need.ucpus / CPU_UNIT)
        if quota.memory is not None and held.memory + need.memory > quota.memory:
            return _beyond("GiB of memory", quota.memory / GIB, held.memory / GIB, need.memory / GIB)
        if quota.gpus is not None and need.gpus and held.gpus + need.gpus > quota.gpus:
            return _beyond("GPUs", quota.gpus, held.gpus, need.gpus)
        return None

    def _of(self, owner: str) -> tuple[Holding, float, float]:
        found = self._owners.get(owner)
        if found is None:
            held = replace(self._shares.holding(owner))
            found = held, self._shares.lately(owner, self._at_s), self._shares.weight(owner)
            self._owners[owner] = found
        return found


def dominant(held: Amounts, fleet: Amounts) -> float:
    """Return the largest part of *fleet* that *held* is, 0 to 1."""
    (cpus, memory, gpus), (all_cpus, all_memory, all_gpus) = held, fleet
    if not all_cpus or not all_memory:
        return 0.0
    return min(1.0, max(cpus / all_cpus, memory / all_memory, gpus / all_gpus if all_gpus else 0.0))


def _beyond(what: str, quota: float, held: float, wanted: float) -> str:
    return f"needs {wanted:g} {what}; {held:g} of the quota of {quota:g} are held"
