"""The command behind `make up`, `make down` and `make demo`."""

import argparse
import sys

from infra.local import control
from infra.local.home import Home
from infra.local.supervisor import supervise


def main() -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.local", description="wherry on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "start everything and wait until it takes jobs"),
        ("down", "stop everything; data stays"),
        ("demo", "run the main job on it"),
        ("status", "what runs"),
        ("supervise", "run it in this process"),
    ):
        commands.add_parser(name, help=text)
    logs = commands.add_parser("logs", help="the end of the logs")
    logs.add_argument("names", nargs="*", help="gateway, scheduler, storage, notifier, node_agent, nats, mongo, …")
    logs.add_argument("-f", "--follow", action="store_true")
    asked = parser.parse_args()
    home = Home.from_env()
    try:
        return _run(asked, home)
    except control.StackFailedError as failed:
        print(f"wherry did not do it: {failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _run(asked: argparse.Namespace, home: Home) -> int:
    match asked.command:
        case "up":
            control.up(home)
        case "down":
            control.down(home)
        case "demo":
            from infra.local.demo import demo  # noqa: PLC0415 - needs the client, which up and down do not

            return demo(home)
        case "status":
            return control.status(home)
        case "supervise":
            return supervise(home)
        case _:
            control.logs(home, asked.names, follow=asked.follow)
    return 0


if __name__ == "__main__":
    sys.exit(main())
