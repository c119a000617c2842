"""Questions about items."""

from services.storage.routes.table import Route, route
from services.storage.shell.items import Items
from shared.channels import ITEM_GET, ITEM_LIST


def item_routes(items: Items) -> list[Route]:
    """Return the routes."""
    return [route(ITEM_LIST, items.list), route(ITEM_GET, items.get)]
