"""The networks of connected gangs on one engine: made by whoever comes first, removed by whoever leaves last."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from services.node_agent.adapters.docker_engine import Engine
from services.node_agent.core import wiring
from services.node_agent.core.container import Key, Place
from shared.errors import NotFound, WherryError
from shared.fleet import Order


class GangBridges:
    """Several agents may use one engine, and any of them may come first: what is on the engine counts.

    Args:
        engine: the one.
        place: labels.
    """

    def __init__(self, engine: Engine, place: Place) -> None:
        self._engine = engine
        self._place = place
        self._known: dict[Key, str | None] = {}  # the network of each attempt that was staged by this process
        self._making = asyncio.Lock()

    async def join(self, order: Order) -> None:
        """Make sure that there is a network for *order*, where it wants one."""
        name = wiring.network_name(order.wiring) if order.wiring and order.wiring.network == "bridge" else None
        self._known[Key(order.job_id, order.attempt)] = name
        if name is not None:
            await self._make(name, self._place.labels(Key(order.job_id, order.attempt), order.owner_id))

    async def mend(self, handle: str, error: WherryError) -> bool:
        """Return whether a start may be tried again: the last to leave removed the network before this one came."""
        if "network" not in error.message or not any(word in error.message for word in ("not found", "ambiguous")):
            return False
        found = await self._engine.call(partial(self._engine.api().inspect_container, handle))
        labels = found["Config"]["Labels"] or {}
        name = labels.get(wiring.LABEL)
        if name is None:
            return False
        await self._make(name, {key: value for key, value in labels.items() if key != "wherry.role"})
        return True

    async def of(self, key: Key, container: str) -> str | None:
        """Return the network of an attempt, also of one that another process has staged; None if it has none."""
        if key in self._known:
            return self._known[key]
        with suppress(NotFound):
            found = await self._engine.call(partial(self._engine.api().inspect_container, container))
            if name := (found["Config"]["Labels"] or {}).get(wiring.LABEL):
                return str(name)
        labels = [f"wherry.job={key.job_id}", f"wherry.attempt={key.attempt}", wiring.LABEL]
        left = await self._engine.call(partial(self._engine.api().networks, filters={"label": labels}))
        return left[0]["Name"] if left else None

    async def leave(self, key: Key, name: str | None) -> None:
        """Remove the network, unless there is still a container that has it or is about to."""
        if name is not None and not await self._users(name):
            for one in await self._named(name):
                await self._remove(one)
        self._known.pop(key, None)

    async def unused(self, networks: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return *networks* without those of gangs that somebody still uses."""
        found: list[Mapping[str, Any]] = []
        for one in networks:
            name = (one["Labels"] or {}).get(wiring.LABEL)
            if name is None or not await self._users(name):
                found.append(one)
        return found

    async def _make(self, name: str, labels: Mapping[str, str]) -> None:
        async with self._making:
            found = await self._named(name)
            if not found:
                try:
                    await self._engine.call(partial(self._engine.api().create_network, **wiring.network(name, labels)))
                except WherryError as error:
                    if "already exists" not in error.message:
                        raise
                found = await self._named(name)
            # Older engines let two of one name come to be at the same moment: all keep the one that was first. Nobody
            # can have joined by the name while it meant two.
            for one in found[1:]:
                await self._remove(one)

    async def _named(self, name: str) -> list[dict[str, Any]]:
        found = await self._engine.call(partial(self._engine.api().networks, names=[name]))
        same = (one for one in found if one["Name"] == name)  # the engine's filter takes parts of names
        return sorted(same, key=lambda one: (one["Created"], one["Id"]))

    async def _users(self, name: str) -> list[Any]:
        filters = {"label": f"{wiring.LABEL}={name}"}
        return await self._engine.call(partial(self._engine.api().containers, all=True, filters=filters))

    async def _remove(self, network: Mapping[str, Any]) -> None:
        try:
            await self._engine.call(partial(self._engine.api().remove_network, network["Id"]))
        except NotFound:
            return
        except WherryError as error:
            if "active endpoints" not in error.message:
                raise
