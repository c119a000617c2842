"""Run the simulated fleet: ``python -m tests.simulation --seed 7 --nodes 1000 --jobs 20000``."""

import argparse
import sys
import traceback

from tests.simulation.run import simulate


def main() -> int:
    """Run as many seeds as were asked for; a seed that fails is printed, and replays exactly."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation")
    parser.add_argument("--seed", type=int, default=1, help="of the first run")
    parser.add_argument("--runs", type=int, default=1, help="with the seeds that follow")
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=20_000)
    options = parser.parse_args()
    for seed in range(options.seed, options.seed + options.runs):
        try:
            print(simulate(seed, options.nodes, options.jobs), flush=True)
        except Exception:  # noqa: BLE001 - whatever broke, the seed is what repeats it
            traceback.print_exc()
            print(f"FAILED: python -m tests.simulation --seed {seed} --nodes {options.nodes} --jobs {options.jobs}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
