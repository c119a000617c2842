"""The folder of one local stack: what was made at its first start, and where everything is."""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local.ports import LOOPBACK, write_whole
from shared.ids import new_id
from shared.permissions import password_variable, users

#: The id of the node that every local stack runs.
NODE = "local"


@dataclass(frozen=True)
class Home:
    """``.wherry/``, or what WHERRY_HOME says."""

    root: Path

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Home":
        """Return the folder that *env* names; it need not be there yet."""
        return cls(Path(env.get("WHERRY_HOME") or ".wherry").absolute())

    @property
    def credentials(self) -> Path:
        """Address, user and password of the administrator."""
        return self.root / "credentials.json"

    @property
    def run(self) -> Path:
        """What runs now, with process ids."""
        return self.root / "run.json"

    @property
    def ports(self) -> Path:
        """The ports that were free at the first start."""
        return self.root / "ports.json"

    @property
    def inbox(self) -> Path:
        """Mail and webhooks that the stack's own sinks took."""
        return self.root / "inbox"

    @property
    def node_data(self) -> Path:
        """The agent's journal and files."""
        return self.root / "node"

    def log(self, name: str) -> Path:
        """Return the log of one process."""
        return self.root / "logs" / f"{name}.log"

    def tail(self, name: str, lines: int = 20) -> str:
        """Return the end of that log."""
        file = self.log(name)
        text = file.read_text(errors="replace") if file.exists() else ""
        return "\n".join(text.splitlines()[-lines:])


@dataclass(frozen=True)
class Identity:
    """What a stack is given once and keeps: its id, its keys, its passwords."""

    stack_id: str
    gateway_key: str
    nats: Mapping[str, str]
    admin: str
    password: str


def nodes(env: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the ids of the stack's nodes: `NODE`, and those that WHERRY_MORE_NODES names, separated by commas."""
    more = (name.strip() for name in env.get("WHERRY_MORE_NODES", "").split(","))
    return tuple(dict.fromkeys((NODE, *(name for name in more if name))))


def known_nodes(env: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Return the ids of all nodes that have an account: the stack's own, and those of WHERRY_OTHER_NODES."""
    others = (name.strip() for name in env.get("WHERRY_OTHER_NODES", "").split(","))
    return tuple(dict.fromkeys((*nodes(env), *(name for name in others if name))))


def port(env: Mapping[str, str] = os.environ) -> int:
    """Return the port that the gateway serves.

    Raises:
        ValueError: WHERRY_PORT is none.

    """
    text = env.get("WHERRY_PORT") or "8080"
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ValueError(f"WHERRY_PORT is {text!r}: give a number from 1 to 65535")
    return int(text)


def address(env: Mapping[str, str] = os.environ) -> str:
    """Return the gateway's address on this machine."""
    return f"http://{LOOPBACK}:{port(env)}"


def identity(home: Home, env: Mapping[str, str] = os.environ) -> Identity:
    """Return the stack's identity, made and written down the first time; the address is always today's."""
    home.root.mkdir(parents=True, exist_ok=True)
    stack = _kept(home.root / "stack.json", lambda: {"id": new_id("s"), "gateway_key": secrets.token_hex(32)})
    nats = _kept(home.root / "nats" / "passwords.json", dict)
    names = [user.name for user in users(known_nodes(env))]
    if missing := [name for name in names if name not in nats]:
        nats |= {name: env.get(password_variable(name)) or secrets.token_urlsafe(24) for name in missing}
        _write(home.root / "nats" / "passwords.json", nats)
    known = _read(home.credentials)
    credentials = {
        "url": address(env),
        "user": known.get("user") or env.get("WHERRY_ADMIN_USER") or "admin",
        "password": known.get("password") or env.get("WHERRY_ADMIN_PASSWORD") or secrets.token_urlsafe(18),
    }
    if credentials != known:
        _write(home.credentials, credentials)
    return Identity(stack["id"], stack["gateway_key"], nats, credentials["user"], credentials["password"])


def _kept(file: Path, make: Callable[[], dict[str, str]]) -> dict[str, str]:
    if not file.exists():
        _write(file, make())
    return _read(file)


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text()) if file.exists() else {}


def _write(file: Path, value: Mapping[str, Any]) -> None:
    write_whole(file, json.dumps(value, indent=2) + "\n", 0o600)
