"""The machines: what they are, and what administrators want of them."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, Field

from services.gateway.core import access, translate, translate_fleet, views_fleet
from services.gateway.core.access import Action
from services.gateway.routes.http import Caller, Door, answer, json_body, json_of, json_or_default, optional_body
from services.gateway.shell import fleet
from services.gateway.shell.gateway import Gateway
from shared.channels import NODE_GET, NODE_LIST, NODE_SERIES
from shared.requests.accounts import Principal
from shared.requests.nodes import NodeListQuery, NodeQuery, NodeSeriesQuery

router = APIRouter(prefix="/v1", tags=["nodes"])


class Page(BaseModel):
    """Which part of a list is asked for."""

    limit: int = Field(default=500, ge=1, le=1000)
    cursor: str | None = None


class SeriesParams(BaseModel):
    """Which series are asked for, since when, and how closely."""

    name: Annotated[list[Annotated[str, Field(max_length=100)]], Field(max_length=100)] = []
    since: AwareDatetime | None = None
    points: int = Field(default=1000, ge=2, le=5000, description="Of each series, at most.")


@router.get("/nodes", response_model=views_fleet.NodesDocument)
async def list_nodes(gateway: Door, principal: Caller, page: Annotated[Page, Query()]) -> Response:
    """Show machines by name: what each has and uses, whether it is heard and gets work, and why not."""
    whole = access.may(principal, Action.SEE_EVERYTHING)
    found = await gateway.ask(NODE_LIST, NodeListQuery(limit=page.limit, cursor=page.cursor))
    nodes = [translate_fleet.node(node, whole=whole) for node in found.nodes]
    return answer(views_fleet.NodesDocument(nodes=nodes, cursor=found.cursor))


@router.get("/nodes/{node}", response_model=views_fleet.NodeDocument)
async def show_node(node: str, gateway: Door, principal: Caller) -> Response:
    """Show one machine, by its id or name; to administrators with what it runs and its history."""
    found = await gateway.ask(NODE_GET, NodeQuery(node=node))
    whole = access.may(principal, Action.SEE_EVERYTHING)
    return answer(translate_fleet.node(found, whole=whole, history=True))


@router.get("/nodes/{node}/metrics", response_model=views_fleet.NodeMetricsDocument)
async def node_metrics(node: str, gateway: Door, _: Caller, params: Annotated[SeriesParams, Query()]) -> Response:
    """Show what a machine has used over time, of the last days: cpu (percent), memory (bytes), running_jobs and more.

    A series with more points than are asked for keeps its first and last point and those that stand out.
    """
    query = NodeSeriesQuery(node=node, names=tuple(params.name), since=params.since, most=params.points)
    page = await gateway.ask(NODE_SERIES, query)
    return answer(views_fleet.NodeMetricsDocument(node=node, **translate.metrics(page).model_dump(exclude={"attempt"})))


@router.get("/clusters", response_model=views_fleet.ClustersDocument)
async def list_clusters(gateway: Door, _: Caller) -> Response:
    """Show the machines by cluster, and what those that are online offer together."""
    return answer(translate_fleet.clusters([node async for node in fleet.every_node(gateway)]))


@router.post(
    "/nodes/{node}/drain",
    status_code=202,
    response_model=views_fleet.NodeDocument,
    openapi_extra=optional_body(views_fleet.DrainOrder),
)
async def drain(node: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Empty a machine: nothing new, and what still runs at the deadline is moved. The answer shows it as it was."""
    access.require(principal, Action.MANAGE_NODES)
    order = await json_or_default(request, views_fleet.DrainOrder)
    return await _wished(gateway, principal, node, "drain", order.reason, order.deadline)


@router.post(
    "/nodes/{node}/undrain",
    status_code=202,
    response_model=views_fleet.NodeDocument,
    openapi_extra=optional_body(views_fleet.NodeOrder),
)
async def undrain(node: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Let a machine that was drained or cordoned get work again. The answer shows it as it was."""
    access.require(principal, Action.MANAGE_NODES)
    order = await json_or_default(request, views_fleet.NodeOrder)
    return await _wished(gateway, principal, node, "undrain", order.reason)


@router.post(
    "/nodes/{node}/cordon",
    status_code=202,
    response_model=views_fleet.NodeDocument,
    openapi_extra=optional_body(views_fleet.NodeOrder),
)
async def cordon(node: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Give a machine nothing new; what it runs goes on. The answer shows it as it was."""
    access.require(principal, Action.MANAGE_NODES)
    order = await json_or_default(request, views_fleet.NodeOrder)
    return await _wished(gateway, principal, node, "cordon", order.reason)


@router.post(
    "/nodes/{node}/prefetch",
    status_code=202,
    response_model=views_fleet.NodeDocument,
    openapi_extra=json_body(views_fleet.PrefetchOrder),
)
async def prefetch(node: str, request: Request, gateway: Door, principal: Caller) -> Response:
    """Let a machine bring an image, an artifact or a dataset before a job wants it. The answer shows it as it was.

    Its history says when it is done, or why it came to nothing.
    """
    access.require(principal, Action.MANAGE_NODES)
    order = await json_of(request, views_fleet.PrefetchOrder)
    found = await fleet.prefetch(gateway, principal, node, order.what, unpack=order.unpack)
    return answer(translate_fleet.node(found, whole=True, history=True), 202)


@router.delete("/nodes/{node}", status_code=202, response_model=views_fleet.NodeDocument)
async def forget(
    node: str,
    gateway: Door,
    principal: Caller,
    *,
    reason: Annotated[views_fleet.Reason, Query()] = "",
    force: Annotated[bool, Query()] = False,
) -> Response:
    """Ask for a machine to be forgotten that is lost or has left. One that comes back joins anew.

    The answer shows it as it was; once it is forgotten there is no such machine (404). While an exclusive job may still
    run there, it is not forgotten, and its history says for how long, unless `force`.
    """
    access.require(principal, Action.MANAGE_NODES)
    return await _wished(gateway, principal, node, "forget", reason, force=force)


async def _wished(
    gateway: Gateway,
    principal: Principal,
    node: str,
    verb: str,
    reason: str,
    deadline_s: float | None = None,
    *,
    force: bool = False,
) -> Response:
    found = await fleet.wish(gateway, principal, node, verb, reason, deadline_s, force=force)
    return answer(translate_fleet.node(found, whole=True, history=True), 202)
