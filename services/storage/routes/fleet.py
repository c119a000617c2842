"""Questions about nodes, and about storage itself."""

from services.storage.adapters.job_store import JobStore
from services.storage.adapters.mongo import Mongo
from services.storage.core import queries as q
from services.storage.core.projections import microseconds, online_within
from services.storage.routes.table import Route, route
from shared import channels as c
from shared.clock import utc_now
from shared.errors import NotFound
from shared.requests import Counts, Empty, NodeList, NodeQuery, NodeView


class FleetRoutes:
    """Answers about nodes."""

    def __init__(self, mongo: Mongo, store: JobStore) -> None:
        self._mongo = mongo
        self._store = store

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            route(c.NODE_LIST, self.list),
            route(c.NODE_GET, self.get),
            route(c.COUNTS, self.counts),
            route(c.PING, self.ping),
        ]

    async def list(self, _: Empty) -> NodeList:
        """Return every node; of a large fleet without what each holds, so that one answer can carry them."""
        nodes = await self._store.nodes(utc_now())
        if sum(len(one.to_bytes()) for one in nodes) > q.ANSWER_BYTES_MOST:
            nodes = [one.model_copy(update={"images": (), "attempts": ()}) for one in nodes]
        return NodeList(nodes=tuple(nodes[: q.fitting(len(one.to_bytes()) for one in nodes)]))

    async def get(self, query: NodeQuery) -> NodeView:
        """Return a node.

        Raises:
            NotFound: there is none of this id or name.
        """
        node = await self._store.node(query.node, utc_now())
        if node is None:
            raise NotFound(f"There is no node {query.node!r}.")
        return node

    async def counts(self, _: Empty) -> Counts:
        """Return numbers of jobs and nodes."""
        jobs = await self._store.counts()
        total = await self._store.nodes_total()
        online = await self._store.nodes_since(microseconds(utc_now() - online_within(total)))
        return Counts(jobs=jobs, nodes_online=online, nodes_total=total)

    async def ping(self, _: Empty) -> None:
        """Return if MongoDB answers."""
        await self._mongo.ping()
