"""Questions about datasets."""

from services.storage.routes.table import Route, route
from services.storage.shell.datasets import Datasets
from shared import channels as c


def dataset_routes(datasets: Datasets) -> list[Route]:
    """Return the routes."""
    return [
        route(c.DATASET_PUT, datasets.put),
        route(c.DATASET_GET, datasets.get),
        route(c.DATASET_LIST, datasets.list),
        route(c.DATASET_UPDATE, datasets.update),
        route(c.DATASET_DELETE, datasets.remove),
    ]
