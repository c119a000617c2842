"""Artifacts listed and removed, or made of what is on the web: what gateways ask, having checked whose they are."""

from services.storage.routes.table import Route, route
from services.storage.shell.artifacts import Artifacts
from services.storage.shell.fetches import Fetches
from shared import channels as c
from shared.requests.artifacts import ArtifactQuery


def routes(artifacts: Artifacts, fetches: Fetches) -> list[Route]:
    """Return the routes."""

    async def delete(query: ArtifactQuery) -> None:
        await artifacts.delete(query.artifact_id)

    return [
        route(c.ARTIFACT_LIST, artifacts.list),
        route(c.ARTIFACT_DELETE, delete),
        route(c.WEB_FETCH, fetches.now),
    ]
