"""What administrators want of nodes and of owners' quotas: recorded, and decided by the scheduler."""

from collections.abc import AsyncIterator

from pydantic import ValidationError

from services.gateway.shell.gateway import Gateway
from services.gateway.shell.inputs import Inputs
from shared.bus import Record
from shared.channels import NODE_GET, NODE_LIST, NODE_WISH, QUOTA_SET, USER_GET
from shared.clock import utc_now
from shared.errors import WherryError
from shared.fleet import NodeWish, Prefetch, Quota, QuotaSet
from shared.ids import new_id
from shared.requests.accounts import Principal, UserName
from shared.requests.nodes import NodeListQuery, NodeQuery, NodeView
from shared.spec import Input, JobSpec
from shared.states import NodeCondition

_PAGE = 500
_NAME = "what"
_GONE = frozenset({NodeCondition.LOST, NodeCondition.LEFT})


async def wish(
    gateway: Gateway,
    principal: Principal,
    node: str,
    verb: str,
    reason: str,
    deadline_s: float | None = None,
    *,
    force: bool = False,
) -> NodeView:
    """Record that *node* (an id or a name) is to be drained, undrained, cordoned or forgotten; return it as it was.

    Raises:
        WherryError: ``not_found``; ``conflict``: a node that is there cannot be forgotten; ``unavailable``.
    """
    found = await gateway.ask(NODE_GET, NodeQuery(node=node))
    if verb == "forget" and not _is_gone(found):
        raise WherryError(
            "conflict",
            f"Node {found.node.name} is {_condition(found)}: only one that is lost or has left can be forgotten. "
            "Drain it and stop its agent first.",
        )
    data = NodeWish(by=principal.name, reason=reason, deadline_s=deadline_s, force=force, at=utc_now())
    event = gateway.bus.event(NODE_WISH, data, subject=found.node.id, verb=verb)
    await gateway.bus.record(Record(NODE_WISH, {"node_id": found.node.id, "verb": verb}, event))
    return found


async def prefetch(gateway: Gateway, principal: Principal, node: str, what: str, *, unpack: bool) -> NodeView:
    """Record that *node* is to bring an image, an ``artifact:`` or a ``dataset:``; return the node as it was.

    Raises:
        WherryError: ``not_found``; ``invalid``; ``unavailable``.
    """
    found = await gateway.ask(NODE_GET, NodeQuery(node=node))
    wanted = Prefetch(id=new_id("p"), image=what)
    if what.startswith(("artifact:", "dataset:")):
        try:
            spec = JobSpec(runtime="process", command="true", inputs={_NAME: Input(source=what, unpack=unpack)})
        except ValidationError as error:
            raise WherryError("invalid", f"{what!r} is neither artifact:<id> nor dataset:<name>@<version>.") from error
        recorded = await Inputs(gateway, principal).recorded(spec)
        wanted = Prefetch(id=wanted.id, input=recorded.inputs[_NAME])
    data = NodeWish(by=principal.name, prefetch=wanted, at=utc_now())
    event = gateway.bus.event(NODE_WISH, data, subject=found.node.id, verb="prefetch")
    await gateway.bus.record(Record(NODE_WISH, {"node_id": found.node.id, "verb": "prefetch"}, event))
    return found


async def every_node(gateway: Gateway) -> AsyncIterator[NodeView]:
    """Give all nodes, by name."""
    cursor: str | None = None
    while True:
        page = await gateway.ask(NODE_LIST, NodeListQuery(limit=_PAGE, cursor=cursor))
        for node in page.nodes:
            yield node
        cursor = page.cursor
        if cursor is None:
            return


async def set_quota(gateway: Gateway, principal: Principal, name: str, quota: Quota | None) -> None:
    """Record a user's quota, or that there is none any more.

    Raises:
        WherryError: ``not_found``: no such user; ``unavailable``.
    """
    owner_id = (await gateway.ask(USER_GET, UserName(name=name))).id
    data = QuotaSet(quota=quota, by=principal.name, at=utc_now())
    event = gateway.bus.event(QUOTA_SET, data, subject=owner_id)
    await gateway.bus.record(Record(QUOTA_SET, {"owner": owner_id}, event))


def _is_gone(node: NodeView) -> bool:
    return node.record.condition in _GONE if node.record else not node.online


def _condition(node: NodeView) -> str:
    return node.record.condition.value if node.record else "online"
