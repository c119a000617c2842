"""Whatever happens to a fleet, every job comes to one end, and no promise is broken on the way."""

import os
from collections import Counter

import pytest

from tests.simulation.run import simulate

#: CI looks at another fleet each time where this is set; a seed that fails replays exactly.
SEED = int(os.environ.get("WHERRY_SIMULATION_SEED", "1"))


def run(seed: int, nodes: int, jobs: int) -> Counter[str]:
    """Run a fleet and return what was seen. A seed that fails is printed as the command that repeats it."""
    try:
        report = simulate(seed, nodes, jobs)
    except BaseException:
        print(f"python -m tests.simulation --seed {seed} --nodes {nodes} --jobs {jobs}")
        raise
    print(report)
    return report.seen


@pytest.mark.timeout(300)
def test_a_hundred_nodes_and_two_thousand_jobs() -> None:
    seen = run(SEED, 100, 2000)
    assert seen["succeeded"] + seen["failed"] + seen["cancelled"] + seen["timed_out"] == 2000
    assert seen["succeeded"] > 1500, "most of it was to go well"
    faults = {what: count for what, count in seen.items() if ":" in what}
    assert len(faults) >= 8, faults


def test_the_same_seed_is_the_same_history() -> None:
    first, second = simulate(7, 20, 200), simulate(7, 20, 200)
    assert (first.steps, first.virtual_s, first.seen) == (second.steps, second.virtual_s, second.seen)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_nodes_and_six_thousand_jobs() -> None:
    """With 20,000 jobs it is `make sim`."""
    seen = run(SEED, 1000, 6000)
    assert seen["succeeded"] > 4500, "most of it was to go well"
    assert {"succeeded", "failed", "cancelled", "timed_out"} <= set(seen)
