"""Questions about nodes and quotas, and about storage itself."""

import asyncio

from services.storage.adapters.fleet_store import FleetStore
from services.storage.adapters.job_store import JobStore
from services.storage.adapters.mongo import Mongo
from services.storage.core import fleet as f
from services.storage.core import metrics
from services.storage.core import queries as q
from services.storage.routes.table import Route, route
from services.storage.shell.quotas import Quotas
from shared import channels as c
from shared.clock import utc_now
from shared.errors import NotFound
from shared.model import Empty
from shared.requests.administration import Counts
from shared.requests.jobs import MetricPage
from shared.requests.nodes import NodeList, NodeListQuery, NodeQuery, NodeSeriesQuery, NodeView


class FleetRoutes:
    """Answers about nodes and quotas."""

    def __init__(self, mongo: Mongo, store: FleetStore, jobs: JobStore, quotas: Quotas) -> None:
        self._mongo = mongo
        self._store = store
        self._jobs = jobs
        self._quotas = quotas

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            route(c.NODE_LIST, self.list),
            route(c.NODE_GET, self.get),
            route(c.NODE_SERIES, self.series),
            route(c.QUOTA_GET, self._quotas.get),
            route(c.COUNTS, self.counts),
            route(c.PING, self.ping),
        ]

    async def list(self, query: NodeListQuery) -> NodeList:
        """Return a page of nodes, by name; fewer than asked for where one answer cannot carry them."""
        limit = q.bounded(query.limit, q.NODES_MOST)
        found = await self._store.nodes(f.nodes_filter(query.cursor), limit + 1, utc_now())
        page = found[: min(limit, q.fitting(len(one.to_bytes()) for one in found))]
        return NodeList(nodes=tuple(page), cursor=f.nodes_cursor(page[-1]) if len(found) > len(page) else None)

    async def get(self, query: NodeQuery) -> NodeView:
        """Return a node.

        Raises:
            NotFound: there is none of this id or name.
        """
        node = await self._store.node(query.node, utc_now())
        if node is None:
            raise NotFound(f"There is no node {query.node!r}.")
        return node

    async def series(self, query: NodeSeriesQuery) -> MetricPage:
        """Return what a node has used over time.

        Raises:
            NotFound: there is none of this id or name.
        """
        node = (await self.get(NodeQuery(node=query.node))).node.id
        points = await self._store.samples(node, query.since)
        return await asyncio.to_thread(metrics.page, 0, points, query.names, query.most)

    async def counts(self, _: Empty) -> Counts:
        """Return numbers of jobs and nodes."""
        jobs = await self._jobs.counts()
        total = await self._store.nodes_total()
        online = await self._store.nodes_since(utc_now() - f.online_within(total))
        conditions, duties = await self._store.node_counts()
        return Counts(jobs=jobs, nodes_online=online, nodes_total=total, conditions=conditions, duties=duties)

    async def ping(self, _: Empty) -> None:
        """Return if MongoDB answers."""
        await self._mongo.ping()
