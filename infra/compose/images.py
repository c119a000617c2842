"""Which images the stack is made of: public ones where a registry answers, else our own from Debian and wheels."""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
DOCKER_FILES = REPOSITORY / "infra/docker"
#: What docker-compose.yml uses by default. The smallest comes first: it shows whether a registry is in reach.
PUBLIC = {
    "WHERRY_NATS_IMAGE": "nats:2.14-alpine",
    "WHERRY_PYTHON_IMAGE": "python:3.11-slim-bookworm",
    "WHERRY_MONGO_IMAGE": "mongo:7",
}
OWN = {
    "WHERRY_NATS_IMAGE": "wherry/nats",
    "WHERRY_PYTHON_IMAGE": "wherry/python-base",
    "WHERRY_MONGO_IMAGE": "wherry/mongo",
}
PULL_LIMIT_S = 180


class ImageError(Exception):
    """An image could not be made. The message has the end of what the builder said."""


def choose(environment: Mapping[str, str], say: Callable[[str], None]) -> dict[str, str]:
    """Return the image of each ``WHERRY_…_IMAGE``: the one that is set, else the public one, else our own, built now.

    Raises:
        ImageError: no registry is in reach, and our own could not be built.

    """
    chosen = {name: environment[name] for name in PUBLIC if environment.get(name)}
    missing = [name for name in PUBLIC if name not in chosen]
    if all(_is_here(PUBLIC[name]) or _pull(PUBLIC[name], say) for name in missing):
        return chosen | {name: PUBLIC[name] for name in missing}
    say("no registry in reach: our own images from Debian and wheels")
    _build_own(missing, chosen.get("WHERRY_PYTHON_IMAGE", OWN["WHERRY_PYTHON_IMAGE"]))
    return chosen | {name: OWN[name] for name in missing}


def build(services: Mapping[str, Mapping[str, Any]], say: Callable[[str], None]) -> None:
    """Build the image of every service of a compose configuration that has a `build` part; layers are cached.

    Args:
        services: `services` of ``docker compose config --format json``.
        say: told of each image.

    Raises:
        ImageError: one failed.

    """
    wanted = {service["image"]: service["build"] for service in services.values() if "build" in service}

    def one(image: str) -> None:
        part = wanted[image]
        _build(image, Path(part["dockerfile"]), {name: value for name, value in part["args"].items() if value})
        say(image)

    with ThreadPoolExecutor(2) as pool:  # installing is half waiting, half work
        list(pool.map(one, wanted))


def _build_own(names: list[str], python_base: str) -> None:
    _run([str(DOCKER_FILES / "build-base.sh"), OWN["WHERRY_PYTHON_IMAGE"]])
    if "WHERRY_NATS_IMAGE" in names:
        _run([str(DOCKER_FILES / "build-busybox.sh")])
        _build(OWN["WHERRY_NATS_IMAGE"], DOCKER_FILES / "nats.Dockerfile", {"PYTHON_BASE": python_base})
    if "WHERRY_MONGO_IMAGE" in names:
        _build(OWN["WHERRY_MONGO_IMAGE"], DOCKER_FILES / "mongo.Dockerfile", {"PYTHON_BASE": python_base})


def _build(image: str, dockerfile: Path, arguments: Mapping[str, str]) -> None:
    from_here = {name: value for name in _PASSED_ON if (value := os.environ.get(name))}
    options = [f"--build-arg={name}={value}" for name, value in (from_here | dict(arguments)).items()]
    _run(["docker", "build", "--tag", image, "--file", str(REPOSITORY / dockerfile), *options, str(REPOSITORY)])


#: How the build steps reach the package index that this machine uses.
_PASSED_ON = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")


def _is_here(image: str) -> bool:
    return subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False).returncode == 0


def _pull(image: str, say: Callable[[str], None]) -> bool:
    say(f"pulling {image}")
    try:
        done = subprocess.run(["docker", "pull", "-q", image], capture_output=True, timeout=PULL_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _run(command: list[str]) -> None:
    buildkit = subprocess.run(["docker", "buildx", "version"], capture_output=True, check=False).returncode == 0
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            command,
            env=os.environ | {"DOCKER_BUILDKIT": "1" if buildkit else "0"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode:
            output.seek(0)
            told = output.read().decode(errors="replace").splitlines()
            raise ImageError("\n".join([json.dumps(command), *told[-30:]]))
