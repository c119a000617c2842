"""One run of the simulated fleet."""

from tests.simulation.fleet import Fleet, Report
from tests.simulation.nemesis import Nemesis

#: A node has a misfortune about this often, in seconds, whatever the fleet's size.
NODE_TROUBLE_S = 400.0


def simulate(seed: int, nodes: int, jobs: int) -> Report:
    """Run a fleet with all its misfortunes to its end.

    Raises:
        Violation: a promise was broken.
    """
    fleet = Fleet(seed, nodes, jobs)
    Nemesis(fleet, NODE_TROUBLE_S / nodes)
    return fleet.run()
