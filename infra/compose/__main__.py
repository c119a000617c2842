"""The command behind `make compose-up`, `make compose-smoke` and `make compose-down`."""

import argparse
import os
import sys
import time
from pathlib import Path

from client.wherry import WherryError
from infra.compose.images import ImageError
from infra.compose.prepare import prepare, prepared
from infra.compose.smoke import SmokeError, smoke
from infra.compose.stack import ComposeError, down, logs, up
from infra.local.home import address

_FAILURES = (ComposeError, ImageError, SmokeError, WherryError, FileNotFoundError, ValueError)


def main() -> int:
    """Run one command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m infra.compose", description="wherry in containers.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("prepare", help="make what docker-compose.yml reads: passwords and NATS configuration")
    commands.add_parser("up", help="choose or build the images, start everything, wait until it is healthy")
    commands.add_parser("smoke", help="run the main job through it and check all that it leaves")
    commands.add_parser("logs", help="the end of every container's log")
    stop = commands.add_parser("down", help="stop everything; data stays in volumes")
    stop.add_argument("--forget", action="store_true", help="remove the volumes too: jobs, results, users")
    asked = parser.parse_args()
    try:
        _run(asked, Path(os.environ.get("WHERRY_HOME") or ".wherry").absolute())
    except _FAILURES as failed:
        print(f"wherry did not do it: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(asked: argparse.Namespace, home: Path) -> None:
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {text}", flush=True)

    match asked.command:
        case "prepare":
            say(f"made {prepare(home, os.environ, {}).env_file}")
        case "up":
            ready = up(home, os.environ, say)
            say(f"wherry is at {address()}; the administrator's password is in {ready.credentials}")
        case "smoke":
            smoke(home, prepared(home), os.environ, say)
        case "logs":
            print(logs(home))
        case _:
            down(home, forget=asked.forget)
            say("stopped")


if __name__ == "__main__":
    sys.exit(main())
