"""What storage knows of nodes. Times are UTC."""

from datetime import datetime
from typing import Any

from shared.fleet import Capacity, HeldInput, NodeInfo, NodeRecord, Usage
from shared.model import Message


class NodeQuery(Message):
    """A node by id or name."""

    node: str


class NodeView(Message):
    """A node as of its last heartbeat."""

    node: NodeInfo
    capacity: Capacity
    usage: Usage
    attempts: tuple[dict[str, Any], ...] = ()  # HeldAttempt as JSON
    images: tuple[str, ...] = ()
    inputs: tuple[HeldInput, ...] = ()
    seen_at: datetime
    online: bool
    record: NodeRecord | None = None  # condition, duty and history, as the scheduler has them
    problem: str = ""


class NodeListQuery(Message):
    """Nodes, by name."""

    limit: int = 500  # 1 to 1000
    cursor: str | None = None


class NodeList(Message):
    """A page of nodes; `cursor` asks for the next."""

    nodes: tuple[NodeView, ...] = ()
    cursor: str | None = None


class NodeSeriesQuery(Message):
    """What a node, by id or name, has used over time: the series *names* (none: all), since a moment (None: ever)."""

    node: str
    names: tuple[str, ...] = ()
    since: datetime | None = None
    most: int = 1000  # points of each series, 2 to 5000; a longer one is thinned
