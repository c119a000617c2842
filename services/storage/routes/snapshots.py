"""Looks at what running jobs have left so far."""

from services.storage.routes.table import Route, route
from services.storage.shell.snapshots import Snapshots
from shared import channels as c


def snapshot_routes(snapshots: Snapshots) -> list[Route]:
    """Return the routes for those who look."""
    return [route(c.SNAPSHOT_ASK, snapshots.ask), route(c.SNAPSHOT_GET, snapshots.get)]


def snapshot_answers(snapshots: Snapshots) -> list[Route]:
    """Return the route by which nodes answer, on the connection of bytes."""
    return [Route(c.SNAPSHOT_TAKEN, snapshots.taken)]
