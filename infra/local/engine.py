"""The Docker engine of this machine, the same one that the stack's agent finds."""

import os
from contextlib import suppress
from pathlib import Path

import docker
import docker.errors
import docker.tls

from services.node_agent.adapters.docker_endpoint import Endpoint, endpoints

#: On everything that a stack's agents make (services/node_agent/core/container.py).
STACK_LABEL = "wherry.stack"


def engine(timeout_s: int = 60) -> docker.DockerClient | None:
    """Return a client of the first engine that answers, or None. A DOCKER_HOST that is set and dead is none."""
    for endpoint in endpoints(os.environ, Path.home(), os.getuid()):
        try:
            client = docker.DockerClient(base_url=endpoint.url, tls=_tls(endpoint), timeout=timeout_s)
            client.ping()
        except (docker.errors.DockerException, OSError):
            continue
        return client
    return None


def remove_containers(stack_id: str) -> int:
    """Remove what the stack's agents left on this machine's engine, and its networks; return how many containers."""
    client = engine()
    if client is None:
        return 0
    label = f"{STACK_LABEL}={stack_id}"
    containers = client.containers.list(all=True, filters={"label": label})
    for container in containers:
        with suppress(docker.errors.NotFound):  # its agent was quicker
            container.remove(force=True)
    for network in client.networks.list(filters={"label": label}):
        with suppress(docker.errors.NotFound):
            network.remove()
    return len(containers)


def _tls(endpoint: Endpoint) -> docker.tls.TLSConfig | bool:
    folder = endpoint.certificates
    if folder is None:
        return False
    files = (str(folder / "cert.pem"), str(folder / "key.pem"))
    return docker.tls.TLSConfig(client_cert=files, ca_cert=str(folder / "ca.pem"), verify=endpoint.verify)
