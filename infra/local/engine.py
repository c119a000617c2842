"""The Docker engine of this machine, found as the docker command finds it."""

import os
from typing import Any

import docker
import docker.errors
import requests.exceptions
from docker.context import ContextAPI

#: On everything that a stack's agents make (services/node_agent).
STACK_LABEL = "io.wherry.stack"


def engine(timeout_s: float = 60) -> docker.DockerClient | None:
    """Return a client of the engine, or None when none answers. A DOCKER_HOST that is set and dead is none."""
    try:
        # Finding it may fail as reaching it does: a context without files, an address that is none.
        if os.environ.get("DOCKER_HOST"):
            client = docker.from_env(timeout=int(timeout_s))
        else:
            context: Any = ContextAPI.get_current_context()
            client = docker.DockerClient(base_url=context.Host, tls=context.TLSConfig, timeout=int(timeout_s))
        client.ping()
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError):
        return None
    return client


def remove_containers(stack_id: str) -> int:
    """Remove what the stack's agents left running on this machine's engine; return how many that were."""
    client = engine()
    if client is None:
        return 0
    left = client.containers.list(all=True, filters={"label": f"{STACK_LABEL}={stack_id}"})
    for container in left:
        try:
            container.remove(force=True)
        except docker.errors.NotFound:
            continue  # its agent was quicker
    return len(left)
