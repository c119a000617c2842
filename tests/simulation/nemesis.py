"""What goes wrong in a fleet, by seed: machines, links and schedulers, each for a while or for good."""

from collections.abc import Callable

from shared.fleet import NodeWish
from tests.simulation.fleet import Fleet, Site

DEAD_SHARE_MAX = 0.03
_BY_CHANCE = ("crash", "crash", "reboot", "cut", "cut", "one_way", "flap", "wipe", "die", "drain")


class Nemesis:
    """Plans one misfortune after the other until the fleet is to be left in peace.

    Args:
        fleet: the victim.
        every_s: mean time between two that hit single nodes.
        leaders_every_s: the same for schedulers.
    """

    def __init__(self, fleet: Fleet, every_s: float, leaders_every_s: float = 60.0) -> None:
        self._fleet = fleet
        self._dice = fleet.dice
        self._every_s = every_s
        self._leaders_every_s = leaders_every_s
        self._ids = list(fleet.sites)
        fleet.at(5.0, self._strike)
        fleet.at(20.0, self._strike_scheduler)
        fleet.at(fleet.submit_s / 2, self._cut_most)
        fleet.at(fleet.quiet_from, self._heal)

    def _strike(self) -> None:
        fleet = self._fleet
        if fleet.is_quiet:
            return
        fleet.at(self._dice.expovariate(1 / self._every_s), self._strike)
        site = fleet.sites[self._dice.choice(self._ids)]
        what = self._dice.choice(_BY_CHANCE)
        fleet.report.seen[f"nodes: {what}"] += 1
        strike: Callable[[Site], None] = getattr(self, f"_{what}")
        strike(site)

    def _crash(self, site: Site) -> None:
        self._fleet.oracle.unwatched(site.agent.engine.values())
        site.agent.crash()
        self._fleet.at(self._dice.uniform(0.5, 40), self._fleet.start, site)

    def _reboot(self, site: Site) -> None:
        site.agent.reboot()
        self._fleet.at(self._dice.uniform(10, 90), self._fleet.start, site)

    def _wipe(self, site: Site) -> None:
        site.agent.wipe()
        self._fleet.oracle.wiped(site.agent.id)
        self._fleet.at(self._dice.uniform(1, 90), self._fleet.start, site)

    def _die(self, site: Site) -> None:
        if sum(one.is_dead for one in self._fleet.sites.values()) < DEAD_SHARE_MAX * len(self._ids):
            site.agent.wipe()
            self._fleet.oracle.wiped(site.agent.id)
            site.is_dead = True

    def _drain(self, site: Site) -> None:
        self._wish(site, "drain", self._dice.choice((None, 5.0, 30.0)))
        self._fleet.at(self._dice.uniform(10, 90), self._wish, site, "undrain")

    def _wish(self, site: Site, verb: str, deadline_s: float | None = None) -> None:
        wish = NodeWish(by="ada", deadline_s=deadline_s, at=self._fleet.now.at)
        self._fleet.fleet_log.wish(site.agent.id, verb, wish)

    def _cut(self, site: Site) -> None:
        site.speaks = site.hears = False
        self._fleet.at(self._dice.choice((3, 10, 25, 45, 120)), _mend, site)

    def _one_way(self, site: Site) -> None:
        if self._dice.random() < 0.5:
            site.speaks = False
        else:
            site.hears = False
        self._fleet.at(self._dice.uniform(5, 90), _mend, site)

    def _flap(self, site: Site) -> None:
        for turn in range(self._dice.randrange(5, 30)):
            self._fleet.at(2.0 * turn, _cut, site)
            self._fleet.at(2.0 * turn + self._dice.uniform(0.2, 1.8), _mend, site)

    def _cut_most(self) -> None:
        """Cut most of the fleet for a while: nobody is lost for it."""
        self._fleet.report.seen["cuts of most nodes"] += 1
        for node_id in self._ids:
            if self._dice.random() < 0.7:
                _cut(self._fleet.sites[node_id])
                self._fleet.at(20.0, _mend, self._fleet.sites[node_id])

    def _strike_scheduler(self) -> None:
        fleet = self._fleet
        if fleet.is_quiet:
            return
        fleet.at(self._dice.expovariate(1 / self._leaders_every_s), self._strike_scheduler)
        if not fleet.leaders:
            return
        leader = fleet.leaders[-1]
        fail_over_s = self._dice.uniform(1, 8)
        match self._dice.randrange(3):
            case 0:
                fleet.report.seen["schedulers killed"] += 1
                fleet.depose(leader)
            case 1:
                fleet.report.seen["schedulers paused"] += 1
                fleet.paused.add(leader.epoch)
                fleet.at(self._dice.uniform(1, 40), fleet.paused.discard, leader.epoch)
            case _:
                fleet.report.seen["schedulers that lead beside another"] += 1
                fleet.at(self._dice.uniform(5, 30), fleet.depose, leader)
        fleet.at(fail_over_s, fleet.elect)

    def _heal(self) -> None:
        fleet = self._fleet
        for leader in fleet.leaders[:-1]:
            fleet.depose(leader)
        fleet.paused.clear()
        if not fleet.leaders:
            fleet.elect()
        for site in fleet.sites.values():
            _mend(site)
            fleet.start(site)
            self._wish(site, "undrain")


def _cut(site: Site) -> None:
    site.speaks = site.hears = False


def _mend(site: Site) -> None:
    site.speaks = site.hears = True
