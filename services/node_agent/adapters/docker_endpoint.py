"""Finding the Docker engine as the docker command does, and saying what was tried."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where an engine may be, and who says so. `certificates` is a folder with TLS client files."""

    url: str
    why: str
    certificates: Path | None = None
    verify: bool = True


def endpoints(environ: Mapping[str, str], home: Path, uid: int) -> list[Endpoint]:
    """Return the places to try, in order. One that is chosen by name is the only one: no other engine by accident."""
    context = environ.get("DOCKER_CONTEXT")
    if not context and (host := environ.get("DOCKER_HOST")):
        tls = environ.get("DOCKER_TLS_VERIFY") or environ.get("DOCKER_CERT_PATH")
        folder = Path(environ.get("DOCKER_CERT_PATH") or _config_folder(environ, home))
        return [Endpoint(host, "DOCKER_HOST", folder if tls else None, bool(environ.get("DOCKER_TLS_VERIFY")))]
    config = _config_folder(environ, home)
    context = context or _read(config / "config.json").get("currentContext")
    if context and context != "default":
        return [_of_context(context, config)]
    return [Endpoint(f"unix://{path}", "a usual place") for path in _sockets(environ, home, uid)]


def _config_folder(environ: Mapping[str, str], home: Path) -> Path:
    return Path(environ.get("DOCKER_CONFIG") or home / ".docker")


def _of_context(name: str, config: Path) -> Endpoint:
    folder = hashlib.sha256(name.encode()).hexdigest()
    meta = _read(config / "contexts" / "meta" / folder / "meta.json")
    engine = meta.get("Endpoints", {}).get("docker", {})
    certificates = config / "contexts" / "tls" / folder / "docker"
    return Endpoint(
        engine.get("Host", ""),
        f"the context {name!r}",
        certificates if certificates.is_dir() else None,
        not engine.get("SkipTLSVerify", False),
    )


def _sockets(environ: Mapping[str, str], home: Path, uid: int) -> list[Path]:
    runtime = Path(environ.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}")
    return [
        Path("/var/run/docker.sock"),
        runtime / "docker.sock",  # rootless
        home / ".docker/run/docker.sock",  # Docker Desktop
        home / ".docker/desktop/docker.sock",
        home / ".colima/default/docker.sock",
        home / ".orbstack/run/docker.sock",
        home / ".rd/docker.sock",
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
