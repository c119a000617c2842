import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.ports import free_port
from tests.conftest import passing_folder
from tests.e2e.stack import ROOT, Stack, docker_answers
from tests.integration.registry_server import RegistryServer
from tests.integration.web_server import Web

# What they assert is explained as in a test.
pytest.register_assert_rewrite("tests.e2e.documented", "tests.e2e.endpoints")

#: A node that may join the stack: whoever wants it starts its agent.
EDGE = "edge-1"
BUSYBOX = "wherry/busybox:latest"


def _busybox_image() -> bool:
    """A container image to run jobs in: busybox from Debian, where that can be made."""
    if subprocess.run(["docker", "image", "inspect", BUSYBOX], capture_output=True, check=False).returncode == 0:
        return True
    script = ROOT / "infra/docker/build-busybox.sh"
    return subprocess.run(["sh", str(script)], capture_output=True, check=False).returncode == 0


def _filters_image() -> bool:
    """Whether the image with the filters is there as its files are now, or can be made."""
    script = ROOT / "infra/docker/build-filters.sh"
    return subprocess.run(["bash", str(script)], capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def web() -> Iterator[Web]:
    """A web server on this machine, from which the stack's jobs may have inputs."""
    with Web() as server:
        yield server


@pytest.fixture(scope="session")
def registry_port() -> int:
    """Where a registry may run that the stack may ask by http."""
    return free_port()


@pytest.fixture(scope="session")
def registry(registry_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    """A Docker registry on this machine."""
    with passing_folder(tmp_path_factory, "registry") as folder, RegistryServer(folder, port=registry_port) as server:
        yield server


@pytest.fixture(scope="session")
def stack(web: Web, registry_port: int) -> Iterator[Stack]:
    """One wherry for all end-to-end tests: jobs run on Docker where an engine answers, else as plain processes."""
    home = Path(tempfile.mkdtemp(prefix="wherry-e2e-"))
    on_docker = docker_answers() and _busybox_image()
    stack = Stack.start(
        home, runtime="docker" if on_docker else "process", image=BUSYBOX if on_docker else None,
        env={
            "WHERRY_OTHER_NODES": EDGE, "WHERRY_FETCH_ALLOW": web.place,
            "WHERRY_REGISTRIES": f"127.0.0.1:{registry_port}",
            "WHERRY_FILTERS_RUNTIME": "docker" if on_docker and _filters_image() else "process",
        },
    )  # fmt: skip
    try:
        yield stack
    finally:
        stack.stop()
        shutil.rmtree(home, ignore_errors=True)
