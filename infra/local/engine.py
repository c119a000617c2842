"""The Docker engine of this machine, the same one that the stack's agent finds."""

import os
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


def _tls(endpoint: Endpoint) -> docker.tls.TLSConfig | bool:
    folder = endpoint.certificates
    if folder is None:
        return False
    files = (str(folder / "cert.pem"), str(folder / "key.pem"))
    return docker.tls.TLSConfig(client_cert=files, ca_cert=str(folder / "ca.pem"), verify=endpoint.verify)
