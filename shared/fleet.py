"""The heartbeat: what a node has and does, and in the answer what should be there."""

from typing import Literal

from pydantic import AwareDatetime, Field

from shared.model import Amount, Message, Name
from shared.spec import JobSpec


class Gpu(Message):
    """One GPU as NVML reports it. Memory in bytes, utilisation in percent, temperature in degrees Celsius."""

    uuid: Name
    name: Name
    memory_total: Amount
    memory_used: Amount = 0
    utilisation: float = 0.0
    temperature: float | None = None
    processes: int = 0


class NodeInfo(Message):
    """What a node is: fixed while its agent runs."""

    id: str
    name: Name
    cluster: str = "default"
    tags: tuple[str, ...] = ()
    arch: Literal["amd64", "arm64"] = "amd64"
    os: str = "linux"
    agent_version: str = ""
    runtimes: tuple[str, ...] = ("docker",)  # what it can run now
    engine: str = ""  # e.g. "docker 20.10.24 api 1.41"; why not, when there is none


class Capacity(Message):
    """What the node offers in all. CPUs fractional, sizes in bytes."""

    cpus: float = Field(ge=0, le=2**20)
    memory: Amount
    disk: Amount
    gpus: tuple[Gpu, ...] = ()


class Usage(Message):
    """What is really in use on the machine, by anyone."""

    cpu_percent: float = 0.0
    load1: float = 0.0
    memory_available: Amount = 0
    disk_free: Amount = 0


class HeldAttempt(Message):
    """An attempt that the node has in its journal and has not been told to forget."""

    job_id: str
    attempt: int
    state: str  # an AttemptState value


class Heartbeat(Message):
    """A node's report. Its id is the subject's, never the body's."""

    node: NodeInfo
    session: str  # new at each start of the agent
    boot_id: str
    seq: int  # counts up within a session
    capacity: Capacity
    usage: Usage = Usage()
    attempts: tuple[HeldAttempt, ...] = ()
    images: tuple[str, ...] = ()
    epoch: int = 0  # the highest the agent has seen
    at: AwareDatetime


class Order(Message):
    """All that a node needs to run an attempt."""

    job_id: str
    owner_id: str
    attempt: int
    spec: JobSpec
    gpus: tuple[str, ...] = ()
    #: Stream sequence of the `placed` event: storage answers about this job once it has seen that far.
    seq: int
    image_digest: str | None = None  # pinned by an earlier attempt


class Assignment(Message):
    """One attempt that should be on the node (start in full, keep) or should not (stop, forget).

    ``stop`` ends the program and reports; ``forget`` means that the attempt's outcome is recorded or no longer
    counts: remove its container, files and journal entry.
    """

    job_id: str
    attempt: int
    action: Literal["start", "keep", "stop", "forget"]
    order: Order | None = None  # with start
    grace_s: float = 10.0  # with stop: seconds between SIGTERM and SIGKILL


class DesiredState(Message):
    """The answer to a heartbeat. An agent refuses an epoch below the highest it has seen."""

    epoch: int
    lease_s: float = 30.0
    interval_s: float = 2.0
    assignments: tuple[Assignment, ...] = ()
    more: bool = False  # did not fit: heartbeat again at once


class Wake(Message):
    """Heartbeat now."""
