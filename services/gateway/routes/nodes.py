"""The machines."""

from fastapi import APIRouter, Response

from services.gateway.core import access, translate, views
from services.gateway.core.access import Action
from services.gateway.routes.http import Caller, Door, answer
from shared.channels import NODE_GET, NODE_LIST
from shared.requests import Empty, NodeQuery

router = APIRouter(prefix="/v1", tags=["nodes"])


@router.get("/nodes", response_model=views.NodesDocument)
async def list_nodes(gateway: Door, principal: Caller) -> Response:
    """Show every machine with what it has and uses."""
    whole = access.may(principal, Action.SEE_EVERYTHING)
    page = await gateway.ask(NODE_LIST, Empty())
    return answer(views.NodesDocument(nodes=[translate.node(node, whole=whole) for node in page.nodes]))


@router.get("/nodes/{node}", response_model=views.NodeDocument)
async def show_node(node: str, gateway: Door, principal: Caller) -> Response:
    """Show one machine, by its id or name."""
    found = await gateway.ask(NODE_GET, NodeQuery(node=node))
    return answer(translate.node(found, whole=access.may(principal, Action.SEE_EVERYTHING)))
