"""Break a real stack on purpose and check that nothing was lost: ``python -m tests.chaos``.

Exit code 0: every promise held; 1: one was broken (the report names each, and the stack's folder stays).
"""

import argparse
import asyncio
import secrets
import shutil
import signal
import sys

from tests.chaos.plants import PLANTS
from tests.chaos.run import Options, run
from tests.e2e.stack import docker_answers


def main(arguments: list[str] | None = None) -> int:
    """Do each kind of chaos that is asked for; return the exit code."""
    asked = _parser().parse_args(arguments)
    runtime = asked.runtime or ("docker" if docker_answers() else "process")
    plants = tuple(name for name in asked.plant.split(",") if name)
    broken = 0
    for kind in asked.faults.split(","):
        options = Options(
            faults=kind,
            jobs=asked.jobs,
            calm=asked.calm,
            seed=asked.seed,
            nodes=asked.nodes,
            runtime=runtime,
            service_s=asked.service_s,
            server_s=asked.server_s,
            pause_s=asked.pause_s,
            patience_s=asked.patience_s,
            plants=plants,
            pace_least=asked.pace_least,
        )
        report = asyncio.run(run(options))
        print("\n".join(report.lines()), flush=True)
        broken += not report.ok
        if asked.clear or (report.ok and not asked.keep):
            shutil.rmtree(report.home, ignore_errors=True)
    return 1 if broken else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    preset = Options()
    parser.add_argument("--faults", default="kill", help="kill, stop, mongo, none; several with commas (kill)")
    parser.add_argument("--jobs", type=int, default=preset.jobs)
    parser.add_argument("--calm", type=int, default=0, help="jobs without faults, for the pace (a fifth of --jobs)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="the same jobs, moments and targets")
    parser.add_argument("--nodes", type=int, default=preset.nodes)
    parser.add_argument("--runtime", choices=("docker", "process"), help="docker where an engine answers")
    parser.add_argument("--service-s", type=float, default=preset.service_s, help="mean s between faults of a service")
    parser.add_argument("--server-s", type=float, default=preset.server_s, help="the same of NATS or mongod")
    parser.add_argument("--pause-s", type=float, default=preset.pause_s, help="the longest stop, in s")
    parser.add_argument("--patience-s", type=float, default=preset.patience_s, help="how long jobs may take")
    parser.add_argument("--plant", default="", help=f"bugs to plant, with commas: {', '.join(PLANTS)}")
    parser.add_argument("--pace-least", type=float, default=preset.pace_least, help="of the calm pace, under kill")
    parser.add_argument("--clear", action="store_true", help="remove the stack's folder also when a promise was broken")
    parser.add_argument("--keep", action="store_true", help="leave the stack's folder also when all is well")
    return parser


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the stack
    sys.exit(main())
