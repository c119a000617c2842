"""What a route is, and how routes are put on the bus."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from services.storage.adapters.mongo import PyMongoError
from shared import observe
from shared.bus import Bus
from shared.channels import Channel
from shared.errors import Unavailable

QUEUE = "storage"

log = observe.logger("storage.routes")


@dataclass(frozen=True, slots=True)
class Route:
    """A question and who answers it."""

    channel: Channel[Any, Any]
    handler: Callable[[dict[str, str], Any], Awaitable[Any]]
    concurrency: int = 64


def route(channel: Channel[Any, Any], answer: Callable[[Any], Awaitable[Any]]) -> Route:
    """Return a route whose handler needs nothing of the subject."""

    async def handler(_: dict[str, str], message: Any) -> Any:
        return await answer(message)

    return Route(channel, handler)


async def serve(bus: Bus, routes: Sequence[Route]) -> None:
    """Answer from now on. While MongoDB is away the answer is ``unavailable``."""
    for one in routes:
        await bus.serve(one.channel, _guarded(one), queue=QUEUE, concurrency=one.concurrency)


def _guarded(one: Route) -> Callable[[dict[str, str], Any], Awaitable[Any]]:
    async def handler(params: dict[str, str], message: Any) -> Any:
        try:
            return await one.handler(params, message)
        except PyMongoError as error:
            log.warning("mongo_failed", channel=one.channel.name, error=str(error))
            raise Unavailable("Storage's database does not answer at the moment.") from error

    return handler
