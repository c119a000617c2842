"""The command behind `make up`, `make down` and `make demo`."""

import argparse
import sys

from infra.local import control
from infra.local.home import Home, identity, known_nodes
from shared.permissions import accounts_config

SETTINGS = """\
environment:
  WHERRY_HOME             data, logs and keys (.wherry)
  WHERRY_PORT             the gateway's port (8080); WHERRY_HOST its address (127.0.0.1)
  WHERRY_ADMIN_USER, WHERRY_ADMIN_PASSWORD, WHERRY_ADMIN_EMAIL
                          the administrator, made at the first start (admin, made up, admin@wherry.localhost)
  WHERRY_NATS_URL, WHERRY_MONGO_URL
                          servers of your own instead of the stack's
  WHERRY_NATS_IMAGE, WHERRY_MONGO_IMAGE
                          their images where neither a wheel nor a program on PATH serves (nats:2.14, mongo:7)
  WHERRY_MONGO_CACHE_GB, WHERRY_MONGO_OPLOG_MB
                          memory and log of MongoDB (1, 1024)
  WHERRY_SMTP_HOST, WHERRY_SMTP_PORT, …
                          a mail server of your own; without it mail becomes files under WHERRY_HOME/inbox
  WHERRY_RUNTIMES         what the node offers (docker,process where Docker answers, else process)
  WHERRY_MORE_NODES       ids of more nodes on this machine, separated by commas: each is an agent of its own
  WHERRY_OTHER_NODES      ids of nodes whose agents you run yourself, wherever: each has an account, and its password
                          is in WHERRY_HOME/nats/passwords.json
  WHERRY_NATS_HOST        the address that the stack's NATS listens on (127.0.0.1); 0.0.0.0 lets such nodes in
  WHERRY_RESTART_DELAY_MAX_S
                          the longest wait before what dies again and again is started again (5)
  WHERRY_SEEDS            0: what is started again reads its code anew, which takes a second (1: it is forked)
  WHERRY_DEMO_IMAGE       the image of the demo; WHERRY_DEMO_RUNTIME=process runs it without one
  and the settings of each service
"""


def main() -> int:
    """Run one command; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m infra.local",
        description="wherry on this machine.",
        epilog=SETTINGS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("up", "start everything and wait until it takes jobs"),
        ("down", "stop everything; data stays"),
        ("demo", "run the main job on it"),
        ("status", "what runs"),
        ("supervise", "run it in this process"),
        ("accounts", "print the accounts that a NATS server of your own needs (WHERRY_NATS_URL)"),
    ):
        commands.add_parser(name, help=text)
    logs = commands.add_parser("logs", help="the end of the logs")
    logs.add_argument("names", nargs="*", help="gateway, scheduler, storage, notifier, node_agent, nats, mongo, …")
    logs.add_argument("-f", "--follow", action="store_true")
    asked = parser.parse_args()
    home = Home.from_env()
    try:
        return _run(asked, home)
    except (control.StackFailedError, ValueError) as failed:
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
            from infra.local.supervisor import supervise  # noqa: PLC0415 - only it needs the servers' clients

            return supervise(home)
        case "accounts":
            print(accounts_config(identity(home).nats, known_nodes()), end="")
        case _:
            control.logs(home, asked.names, follow=asked.follow)
    return 0


if __name__ == "__main__":
    sys.exit(main())
