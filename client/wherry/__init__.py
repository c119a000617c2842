"""wherry's Python SDK: `Client` for programs that wait, `AsyncClient` for asyncio. Speaks REST only."""

from client.wherry.aio import AsyncClient
from client.wherry.client import Client
from client.wherry.errors import Corrupt, FieldProblem, SourceError, Unreachable, WaitTimeout, WherryError
from client.wherry.models import (
    Artifact,
    Attempt,
    End,
    Entry,
    Gap,
    Identity,
    Job,
    JobOutput,
    LogLine,
    Metric,
    Node,
    Notification,
    Progress,
    Session,
    Status,
    Submitted,
    User,
)

__all__ = [
    "Artifact",
    "AsyncClient",
    "Attempt",
    "Client",
    "Corrupt",
    "End",
    "Entry",
    "FieldProblem",
    "Gap",
    "Identity",
    "Job",
    "JobOutput",
    "LogLine",
    "Metric",
    "Node",
    "Notification",
    "Progress",
    "Session",
    "SourceError",
    "Status",
    "Submitted",
    "Unreachable",
    "User",
    "WaitTimeout",
    "WherryError",
]
