"""The agent's settings: ``WHERRY_…`` variables, read once at start."""

import json
import re
import socket
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from services.node_agent.core.capacity import Share, parse_share
from shared.settings import ServiceSettings
from shared.spec import MIB, Bytes

_NOT_SLUG = re.compile(r"[^a-z0-9]+")
NodeId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}$")]


class AgentSettings(ServiceSettings):
    """What one agent needs to know. Sizes in bytes, times in seconds."""

    node_id: NodeId | None = None  # default: from worker_name, else from the host's name
    worker_name: str = ""
    tags: str = ""  # separated by commas
    cluster: str = "default"
    capacity: str = ""  # "cpus=2,memory=4GiB"; default: the whole machine
    data_dir: Path = Path("~/.local/share/wherry-agent")
    runtimes: str = "docker"  # "process" only where it is asked for by name
    stack_id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,40}$")] = "wherry"
    controller_file: Path | None = None  # holds the controller's address
    image_store_endpoint: str = ""
    image_store_token: str = ""
    stop_jobs_on_exit: bool = False
    node_agent_metrics_port: int | None = Field(None, ge=0, le=65535)

    pids_limit: int = Field(256, ge=8, le=65536)
    relay_image: str = "wherry/python-base"  # of the relays of network api: any image with python3
    engine_timeout_s: float = Field(60, gt=0, le=3600)
    engine_threads: int = Field(16, ge=2, le=256)
    log_bytes_max: int = Field(64 * MIB, ge=1024)  # of each attempt
    log_rate: int = Field(2 * MIB, ge=1024)  # bytes of output a second that the node publishes, of all attempts
    outputs_bytes_max: int | None = Field(None, ge=0)  # of what an attempt leaves, kept; default: the job's disk
    disk_interval_s: float = Field(5, gt=0, le=3600)  # between two looks at what programs have written
    #: What inputs of jobs may take of the disk, kept for the next job too; default: a fifth. Attempts have the rest.
    inputs_disk: Bytes | None = None
    serve_bytes_max: int = Field(64 * MIB, ge=1024)  # of a request to a replica, and of its answer
    address: str = ""  # where other nodes reach this one; default: its own end of the way to the controller
    host_network: bool = False  # containers of connected gangs may have this machine's own network
    upload_patience_s: float = Field(600, gt=0)
    stray_age_s: float = Field(60, ge=0)  # what is ours and unknown is removed only when it is older

    @property
    def node(self) -> str:
        """Return the node's id."""
        return self.node_id or slug(self.worker_name or socket.gethostname())

    @property
    def name(self) -> str:
        """Return the node's name for people."""
        return self.worker_name or self.node

    @property
    def tag_list(self) -> tuple[str, ...]:
        """Return the tags."""
        return tuple(_words(self.tags))

    @property
    def runtime_list(self) -> tuple[str, ...]:
        """Return the names of the runtimes that this node may offer."""
        return tuple(_words(self.runtimes))

    @property
    def share(self) -> Share:
        """Return the part of the machine that is offered.

        Raises:
            ValueError: `capacity` cannot be read.
        """
        return parse_share(self.capacity)

    @property
    def folder(self) -> Path:
        """Return where the journal and files of attempts are."""
        return self.data_dir.expanduser().absolute()


def slug(text: str) -> str:
    """Return *text* as a node id: lower case, digits and dashes, at most 40."""
    return _NOT_SLUG.sub("-", text.lower()).strip("-")[:40].strip("-") or "node"


def controller_address(text: str) -> str:
    """Return the address in a controller file: a line of its own, or ``{"controller": "…"}``.

    Raises:
        ValueError: there is none.
    """
    try:
        found = json.loads(text)
    except ValueError:
        lines = [line.strip() for line in text.splitlines()]
        found = next((line for line in lines if line and not line.startswith("#")), "")
    address = found.get("controller") if isinstance(found, dict) else found
    if not isinstance(address, str) or not address:
        raise ValueError("the controller file names no address")
    return address if "://" in address else f"nats://{address}"


def _words(text: str) -> list[str]:
    return [word for word in (part.strip() for part in text.split(",")) if word]
