"""What clients see, and administrators say, of machines. Times are UTC, sizes bytes."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from services.gateway.core.views import PointView, SeriesView
from shared.fleet import Gpu, HeldInput
from shared.spec import ImageRef, Seconds
from shared.states import NodeCondition, NodeDuty


class CapacityView(BaseModel):
    """What a node offers."""

    cpus: float
    memory: int
    disk: int
    gpus: list[Gpu]


class UsageView(BaseModel):
    """What is really in use on the machine, by anyone."""

    cpu_percent: float
    load1: float
    memory_available: int
    disk_free: int


class NodeChangeView(BaseModel):
    """One line of a machine's history."""

    at: datetime
    what: str
    by: str
    reason: str


class NodeDocument(BaseModel):
    """A machine as of its last heartbeat.

    `condition` says whether it is heard (since `since`), `duty` whether it is to get work, and `reason` why not.
    What it runs, which images it holds and its history is for administrators.
    """

    id: str
    name: str
    cluster: str
    tags: list[str]
    arch: str
    os: str
    agent_version: str
    runtimes: list[str]
    engine: str
    online: bool
    condition: NodeCondition
    since: datetime | None
    duty: NodeDuty
    reason: str
    deadline: datetime | None
    refused: str
    problem: str
    seen_at: datetime
    capacity: CapacityView
    usage: UsageView
    running: int
    attempts: list[dict[str, Any]] | None = None
    images: list[str] | None = None
    inputs: list[HeldInput] | None = None
    prefetches: list[str] | None = None
    history: list[NodeChangeView] | None = None


class NodesDocument(BaseModel):
    """Some machines, by name; `cursor` asks for the next."""

    nodes: list[NodeDocument]
    cursor: str | None


class NodeMetricsDocument(BaseModel):
    """What a machine has used: points of several series in order of time, and what each series is in all."""

    node: str
    series: list[SeriesView]
    points: list[PointView]


class ClusterNode(BaseModel):
    """A machine of a cluster, in short."""

    id: str
    name: str
    condition: NodeCondition
    duty: NodeDuty


class ClusterView(BaseModel):
    """A cluster's machines, and what those of them offer together that are online. Sizes in bytes."""

    name: str
    nodes: list[ClusterNode]
    online: int
    cpus: float
    memory: int
    disk: int
    gpus: int
    gpu_memory: int
    running: int


class ClustersDocument(BaseModel):
    """Every cluster, by name."""

    clusters: list[ClusterView]


ArtifactOrDataset = Annotated[
    str,
    StringConstraints(
        max_length=200, pattern=r"^(artifact:a[a-z2-7]{25}|dataset:[a-z0-9][a-z0-9._-]{0,127}(@[1-9][0-9]{0,8})?)$"
    ),
]


Reason = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


class NodeOrder(BaseModel):
    """Why a machine is to get work or not."""

    model_config = {"extra": "forbid"}

    reason: Reason = ""


class DrainOrder(NodeOrder):
    """How a machine is emptied: what still runs at the deadline (seconds, or "10m") is stopped and placed elsewhere.

    Without a deadline everything may run to its end.
    """

    deadline: Seconds | None = None


class PrefetchOrder(BaseModel):
    """What a machine is to bring: ``artifact:<id>``, ``dataset:<name>`` (``@<version>``), or an image.

    A zip is unpacked, as for a job whose input it is, unless `unpack` is false.
    """

    model_config = {"extra": "forbid"}

    what: ArtifactOrDataset | ImageRef = Field(union_mode="left_to_right")
    unpack: bool = True
