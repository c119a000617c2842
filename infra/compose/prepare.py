"""What docker-compose.yml reads from the host: passwords, NATS configuration, MongoDB's key. Made once, then kept."""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.local.home import NODE, Home, Identity, identity
from infra.local.ports import write_whole
from infra.local.programs import ADMIN_EMAIL
from infra.local.servers import MONGO_USER, SERVER_LIMITS
from shared.permissions import OPERATOR, accounts_config, node_user

#: Read inside containers by other users than the one who made them: what guards them is the folder (mode 700).
_IN_CONTAINERS = 0o644
_PRIVATE = 0o600


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a person or script needs to use the stack.

    Attributes:
        env_file: variables for docker-compose.yml itself (``docker compose --env-file``).
        credentials: a JSON file with `url`, `user` and `password` of the first admin.

    """

    env_file: Path
    credentials: Path

    def variable(self, name: str) -> str | None:
        """Return what the env file says of *name*."""
        lines = (line.partition("=") for line in self.env_file.read_text().splitlines())
        return next((value.strip("'") for key, _, value in lines if key == name), None)


def folder_of(home: Path) -> Path:
    """Return where the files of the stack in containers lie."""
    return home / "compose"


def prepare(home: Path, environment: Mapping[str, str], images: Mapping[str, str]) -> Prepared:
    """Write everything under `folder_of(home)`; what was secret before stays as it is.

    Args:
        home: the folder of the stack's files, ``.wherry`` by default.
        environment: ``WHERRY_PORT``, ``WHERRY_ADMIN_USER``, ``WHERRY_ADMIN_PASSWORD``, ``WHERRY_ADMIN_EMAIL``,
            ``WHERRY_DOCKER_SOCKET`` and ``DOCKER_HOST`` count here.
        images: ``WHERRY_…_IMAGE`` for the compose file; what is not named is public.

    Raises:
        FileNotFoundError: there is no engine's socket for the node agent.
        ValueError: a value cannot be written into an env file.

    """
    folder = folder_of(home)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    kept = Home(folder)
    who = identity(kept, environment)
    write_whole(folder / "nats.conf", _nats_config(who), _IN_CONTAINERS)
    _made_once(folder / "mongo.key", 512, _IN_CONTAINERS)
    for name, variables in _service_variables(who, _mongo_url(folder), environment).items():
        write_whole(folder / f"{name}.env", env_text(variables), _PRIVATE)
    socket = docker_socket(environment)
    engine = {"WHERRY_DOCKER_SOCKET": str(socket), "WHERRY_DOCKER_GID": str(socket.stat().st_gid)}
    known = {"WHERRY_HOME": str(home.absolute())} | engine | dict(images)
    write_whole(folder / "compose.env", env_text(known), _PRIVATE)
    return prepared(home)


def prepared(home: Path) -> Prepared:
    """Return what `prepare` made there before.

    Raises:
        FileNotFoundError: nothing yet.

    """
    found = Prepared(folder_of(home) / "compose.env", Home(folder_of(home)).credentials)
    if not found.env_file.exists():
        raise FileNotFoundError(f"there is no stack in containers under {home}: `python -m infra.compose up` makes one")
    return found


def docker_socket(environment: Mapping[str, str]) -> Path:
    """Return the engine's socket that the node agent gets.

    Raises:
        FileNotFoundError: there is none, or the engine is not on this machine.

    """
    host = environment.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    socket = Path(environment.get("WHERRY_DOCKER_SOCKET") or host.removeprefix("unix://"))
    if not socket.is_socket():
        raise FileNotFoundError(f"{socket} is no socket of a Docker engine; name one in WHERRY_DOCKER_SOCKET")
    return socket


def admin_email(environment: Mapping[str, str]) -> str:
    """Return the first admin's address."""
    return environment.get("WHERRY_ADMIN_EMAIL") or ADMIN_EMAIL


def env_text(variables: Mapping[str, str]) -> str:
    """Return an env file's text. In single quotes Compose takes a value as it is.

    Raises:
        ValueError: a value would end its quotes or its line.

    """
    for name, value in variables.items():
        if "'" in value or "\n" in value:
            raise ValueError(f"{name} may hold no quote and no line break")
    return "".join(f"{name}='{value}'\n" for name, value in variables.items())


def _nats_config(who: Identity) -> str:
    return (
        "server_name: wherry\nlisten: 0.0.0.0:4222\nhttp: 127.0.0.1:8222\n"
        f"{SERVER_LIMITS}"
        'jetstream { store_dir: "/data"\n  sync_interval: always\n  max_memory_store: 512MB }\n'
        f"{accounts_config(who.nats, [NODE])}"
    )


def _service_variables(who: Identity, mongo_url: str, environment: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the secret variables of each container: its own, and nobody else's."""
    holders = {name: name for name in ("gateway", "scheduler", "storage", "notifier")}
    holders |= {"bootstrap": OPERATOR, "node-agent": node_user(NODE)}
    variables = {
        name: {"WHERRY_NATS_USER": user, "WHERRY_NATS_PASSWORD": who.nats[user]} for name, user in holders.items()
    }
    variables["mongo-init"] = {"WHERRY_MONGO_URL": mongo_url}
    variables["storage"] |= {
        "WHERRY_MONGO_URL": mongo_url,
        "WHERRY_ADMIN_USER": who.admin,
        "WHERRY_ADMIN_PASSWORD": who.password,
        "WHERRY_ADMIN_EMAIL": admin_email(environment),
    }
    variables["gateway"] |= {"WHERRY_GATEWAY_KEY": who.gateway_key, "WHERRY_GATEWAY_ID": "compose"}
    variables["node-agent"] |= {"WHERRY_NODE_ID": NODE, "WHERRY_STACK_ID": who.stack_id}
    return variables


def _mongo_url(folder: Path) -> str:
    password = _made_once(folder / "mongo.password", 24, _PRIVATE)
    return f"mongodb://{MONGO_USER}:{password}@mongo:27017/?replicaSet=rs0"


def _made_once(file: Path, size: int, mode: int) -> str:
    """Return the secret in *file*, of letters and digits only, because it goes into URLs and into MongoDB's key."""
    if not file.exists():
        write_whole(file, re.sub(r"[^A-Za-z0-9]", "x", secrets.token_urlsafe(size)), mode)
    return file.read_text()
