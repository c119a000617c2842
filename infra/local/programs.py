"""What a local stack runs, with which environment, and in which order it stops."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from infra.local.home import NODE, Home, Identity, nodes
from infra.local.ports import LOOPBACK
from shared.permissions import OPERATOR, node_user

#: Who stops together, first to last: first nobody asks any more, then those that answer, the servers at the end.
STOP_ORDER = (
    ("gateway", "node_agent"),
    ("scheduler", "notifier"),
    ("storage",),
    ("sinks", "mongo"),
    ("nats",),
)
KINDS = ("gateway", "scheduler", "storage", "notifier", "node_agent")
ADMIN_EMAIL = "admin@wherry.localhost"
#: What a process must have in its environment when it is born, where the user does not say otherwise.
FROM_THE_START = {
    "OPENBLAS_NUM_THREADS": "1",  # the scheduler's arrays are no matrices; and what forks has no threads
    # Threads of a small service otherwise hold an arena of memory each.
    "MALLOC_ARENA_MAX": "2",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Program:
    """One process of ours."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True)
class Addresses:
    """Where the servers are. `smtp_port` is None when the user has a mail server."""

    nats: str
    mongo: str
    http_port: int
    webhook_port: int
    smtp_port: int | None

    @property
    def webhook_url(self) -> str:
        """Where the stack's own webhook receiver listens."""
        return f"http://{LOOPBACK}:{self.webhook_port}/"


def services(
    home: Home, who: Identity, where: Addresses, runtimes: str, given: Mapping[str, str]
) -> tuple[Program, ...]:
    """Return the services, an agent for each node. What *given* (the user's environment) sets wins where it can."""
    common = {
        "WHERRY_NATS_URL": where.nats,
        "WHERRY_STACK_ID": who.stack_id,
        **{name: given.get(name, value) for name, value in FROM_THE_START.items()},
    }
    own: dict[str, dict[str, str]] = {
        "storage": {
            "WHERRY_MONGO_URL": where.mongo,
            "WHERRY_ADMIN_USER": who.admin,
            "WHERRY_ADMIN_PASSWORD": who.password,
            "WHERRY_ADMIN_EMAIL": given.get("WHERRY_ADMIN_EMAIL", ADMIN_EMAIL),
        },
        "scheduler": {"WHERRY_SCHEDULER_ID": "local"},
        "gateway": {
            "WHERRY_HOST": given.get("WHERRY_HOST", LOOPBACK),
            "WHERRY_PORT": str(where.http_port),
            "WHERRY_GATEWAY_KEY": who.gateway_key,
            "WHERRY_GATEWAY_ID": given.get("WHERRY_GATEWAY_ID", "local"),
        },
        "notifier": _notifier(where, given),
    }
    for node in nodes(given):
        own[_agent(node)] = {
            "WHERRY_NODE_ID": node,
            "WHERRY_DATA_DIR": str(home.node_data if node == NODE else home.root / f"node-{node}"),
            "WHERRY_RUNTIMES": given.get("WHERRY_RUNTIMES", runtimes),
        }
    return tuple(
        Program(name, (sys.executable, "-m", f"services.{kind_of(name)}"), {**common, **_login(name, who), **env})
        for name, env in own.items()
    )


def kind_of(name: str) -> str:
    """Return which service a process's name is of: agents of nodes beyond the first are ``node_agent@<id>``."""
    return name.partition("@")[0]


def bootstrap(who: Identity, where: Addresses) -> Program:
    """Return the set-up of streams and consumers, which ends by itself."""
    env = {
        "WHERRY_NATS_URL": where.nats,
        "WHERRY_NATS_USER": OPERATOR,
        "WHERRY_NATS_PASSWORD": who.nats[OPERATOR],
    }
    return Program("bootstrap", (sys.executable, "-m", "infra.bootstrap"), env)


def sinks(home: Home, where: Addresses) -> Program:
    """Return the mail and webhook receiver."""
    ports = (str(where.smtp_port or 0), str(where.webhook_port))
    return Program("sinks", (sys.executable, "-m", "infra.local.sinks", str(home.inbox), *ports), {})


def _login(service: str, who: Identity) -> dict[str, str]:
    node = service.partition("@")[2] or NODE
    user = node_user(node) if kind_of(service) == "node_agent" else service
    return {"WHERRY_NATS_USER": user, "WHERRY_NATS_PASSWORD": who.nats[user]}


def _agent(node: str) -> str:
    return "node_agent" if node == NODE else f"node_agent@{node}"


def _notifier(where: Addresses, given: Mapping[str, str]) -> dict[str, str]:
    sink = f"{LOOPBACK}:{where.webhook_port}"
    allowed = [part for part in (given.get("WHERRY_WEBHOOK_ALLOW"), sink) if part]
    env = {"WHERRY_WEBHOOK_ALLOW": ",".join(allowed)}
    if where.smtp_port is not None:
        env |= {
            "WHERRY_SMTP_HOST": LOOPBACK,
            "WHERRY_SMTP_PORT": str(where.smtp_port),
            "WHERRY_SMTP_TLS": "none",
            "WHERRY_MAIL_FROM": given.get("WHERRY_MAIL_FROM", "wherry@wherry.localhost"),
        }
    return env
