"""Volumes of inputs on a Docker engine, which several attempts share."""

from collections.abc import Iterator
from functools import partial

from services.node_agent.adapters.docker_engine import Engine
from services.node_agent.adapters.docker_files import fill
from services.node_agent.core import container
from services.node_agent.core.container import Place
from shared.errors import NotFound, WherryError


class DockerInputs:
    """The volumes that one agent has filled."""

    def __init__(self, engine: Engine, place: Place) -> None:
        self._engine = engine
        self._place = place

    async def fill(self, volume: str, image: str, pieces: Iterator[bytes]) -> None:
        """Make a volume and fill it through a container that is never started."""
        place, api = self._place, self._engine.api()
        name, labels = place.input_name(volume), place.input_labels(volume)
        await self._engine.call(partial(api.create_volume, name, labels=labels))
        try:
            staging = await self._engine.create(container.filling_container(place, volume, image), f"{name}-staging")
            await self._engine.long_call(fill, api, staging, pieces)
        finally:
            await self._engine.remove_quietly(f"{name}-staging")

    async def has(self, volume: str) -> bool:
        """Return whether the volume is there, and is the one that was filled: a missing one would be mounted empty."""
        try:
            found = await self._engine.call(self._engine.api().inspect_volume, self._place.input_name(volume))
        except NotFound:
            return False
        return (found["Labels"] or {}).get("wherry.input") == volume

    async def all(self) -> frozenset[str]:
        """Return every volume of an input of this agent's."""
        labels = [f"{name}={value}" for name, value in self._place.own_labels().items()]
        volumes = partial(self._engine.api().volumes, filters={"label": [*labels, "wherry.input"]})
        found = await self._engine.call(volumes)
        return frozenset(one["Labels"]["wherry.input"] for one in found["Volumes"] or ())

    async def drop(self, volume: str) -> bool:
        """Remove the volume, and what fills it; the engine itself keeps what a container has."""
        name = self._place.input_name(volume)
        await self._engine.remove(f"{name}-staging")
        try:
            await self._engine.call(partial(self._engine.api().remove_volume, name))
        except NotFound:
            return True
        except WherryError as error:
            if "in use" not in error.message:
                raise
            return False
        return True
