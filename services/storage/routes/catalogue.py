"""Questions about models."""

from services.storage.routes.table import Route, route
from services.storage.shell.catalogue import Catalogue
from services.storage.shell.registry_sync import RegistrySync
from shared import channels as c


def catalogue_routes(catalogue: Catalogue, sync: RegistrySync) -> list[Route]:
    """Return the routes."""
    return [
        route(c.MODEL_PUT, catalogue.put),
        route(c.MODEL_GET, catalogue.get),
        route(c.MODEL_LIST, catalogue.list),
        route(c.MODEL_UPDATE, catalogue.update),
        route(c.MODEL_DELETE, catalogue.remove),
        route(c.MODEL_SYNC, sync.begin),
        route(c.MODEL_SYNC_GET, sync.get),
        route(c.MODEL_EVALUATE, catalogue.evaluate),
        route(c.MODEL_EVALUATIONS, catalogue.evaluations),
        route(c.FINE_TUNE_ASK, catalogue.ask_experts),
        route(c.FINE_TUNE_DECLINE, catalogue.decline),
        route(c.FINE_TUNE_LIST, catalogue.requests),
    ]
