"""Uploads that resume: what gateways ask."""

from services.storage.routes.table import Route, route
from services.storage.shell.resumables import Resumables
from shared import channels as c
from shared.bus import Raw
from shared.errors import WherryError
from shared.requests.artifacts import Resumable, ResumableBegin, ResumableQuery
from shared.resumable import CHUNK_HEADER, EPOCH_HEADER, UPLOAD_HEADER

CHUNKS_AT_ONCE = 64


class ResumableRoutes:
    """Answers gateways; they have checked whose upload it is."""

    def __init__(self, resumables: Resumables) -> None:
        self._resumables = resumables

    def routes(self) -> list[Route]:
        """Return the routes. They belong on the bytes' own connection."""
        return [
            route(c.RESUMABLE_CREATE, self._resumables.create),
            route(c.RESUMABLE_GET, self.get),
            route(c.RESUMABLE_BEGIN, self._resumables.begin),
            route(c.RESUMABLE_ADVANCE, self._resumables.advance),
            route(c.RESUMABLE_END, self.end),
            route(c.RESUMABLE_TAIL, self.tail),
            Route(c.RESUMABLE_CHUNK, self.chunk, CHUNKS_AT_ONCE),
        ]

    async def get(self, query: ResumableQuery) -> Resumable:
        """Return how far an upload has come."""
        return await self._resumables.get(query.upload_id)

    async def end(self, query: ResumableQuery) -> None:
        """Drop an upload."""
        await self._resumables.end(query.upload_id)

    async def tail(self, query: ResumableBegin) -> Raw:
        """Return the stored part of the chunk that an offset is within."""
        return Raw(await self._resumables.tail(query.upload_id, query.offset), {})

    async def chunk(self, _: dict[str, str], message: Raw) -> None:
        """Store a chunk."""
        try:
            upload_id = message.headers[UPLOAD_HEADER]
            epoch, number = int(message.headers[EPOCH_HEADER]), int(message.headers[CHUNK_HEADER])
        except (KeyError, ValueError) as error:
            raise WherryError("invalid", "A chunk names its upload, its writer's epoch and its number.") from error
        await self._resumables.chunk(upload_id, epoch, number, message.body)
