"""Retention as administrators ask for it. Whether the asker is one is the gateway's to check."""

from services.storage.routes.table import Route, route
from services.storage.shell.retention import Retention
from shared import channels as c


def retention_routes(retention: Retention) -> list[Route]:
    """Return the routes."""
    return [route(c.RETENTION_RUN, retention.begin), route(c.RETENTION_GET, retention.get)]
