"""Doors of containers: relays beside them, made, revived and removed through the engine."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from services.node_agent.adapters import relay_program
from services.node_agent.adapters.docker_engine import Engine
from services.node_agent.adapters.docker_relay import RelayDoor
from services.node_agent.core import container, door
from services.node_agent.core.container import Key, Place
from services.node_agent.ports import ServeConnection
from shared import observe
from shared.errors import NotFound, WherryError
from shared.fleet import Order

_ATTACH_IN, _ATTACH_OUT = {"stream": 1, "stdin": 1}, {"stream": 1, "stdout": 1, "stderr": 1}
_log = observe.logger("relay")


class DockerDoors:
    """The doors of one agent's containers.

    Args:
        engine: theirs.
        place: names and labels.
        image: what relays are made of: any with python3.
    """

    def __init__(self, engine: Engine, place: Place, image: str) -> None:
        self._engine = engine
        self._place = place
        self._image = image
        self._program = Path(relay_program.__file__).read_text("utf-8")

    @property
    def needs_image(self) -> str:
        """Return the image without which there are no doors."""
        return self._image

    async def port(self) -> int:
        """Return where programs find their door: the same in each container."""
        return door.PORT

    async def make_relay(self, order: Order, *, beside: str | None = None) -> str:
        """Create an attempt's relay, and return its container's id.

        Raises:
            WherryError: the image is not there, or what the engine says.
        """
        body = door.relay_container(self._place, order, self._image, self._program, beside=beside)
        try:
            return await self._engine.create(body, door.relay_name(self._place, Key(order.job_id, order.attempt)))
        except NotFound as error:
            message = f"network api needs the image {self._image} (WHERRY_RELAY_IMAGE) on this node: {error.message}"
            raise WherryError("runtime_error", message) from error

    async def open(self, order: Order, handle: str, port: int, serve: ServeConnection) -> RelayDoor:
        """Have the relay run, and attach to it. One that has died is replaced beside the program, if that runs.

        Raises:
            NotFound: the program is gone, or has ended.
            WherryError: the relay does not come up, or what the engine says.
        """
        del port
        name = door.relay_name(self._place, Key(order.job_id, order.attempt))
        api, call = self._engine.api(), self._engine.call
        job = (await call(partial(api.inspect_container, handle)))["State"]["Status"]
        if job not in ("created", "running", "paused"):
            raise NotFound("the program has ended")
        if not await self._is_running(name):
            if job != "created":
                _log.warning("relay_replaced", relay=name)
                # The network that it had is the program's now, and there until the program ends.
                await self.make_relay(order, beside=handle)
            await call(partial(api.start, name))
        heard = await call(partial(api.attach_socket, name, params=_ATTACH_OUT))
        told = await call(partial(api.attach_socket, name, params=_ATTACH_IN))
        opened = RelayDoor(name, heard, told, serve)
        try:
            await opened.begin()
        except BaseException:
            await opened.close()
            raise
        return opened

    async def put(self, key: Key, handle: str, pieces: Iterator[bytes]) -> None:
        """Unpack a tar, read in a thread, in the outputs. A link there is not followed, and no folder is replaced.

        Raises:
            WherryError: ``conflict``; ``not_running``: the program has ended; or what the engine says.
        """
        del handle
        name = door.relay_name(self._place, key)
        try:
            await self._engine.long_call(partial(self._put, name, pieces))
        except NotFound as error:
            raise WherryError("not_running", "The program has ended, and its outputs are being kept.") from error

    async def _is_running(self, name: str) -> bool:
        try:
            found = await self._engine.call(partial(self._engine.api().inspect_container, name))
        except NotFound:
            return False
        return found["State"]["Status"] == "running"

    def _put(self, name: str, pieces: Iterator[bytes]) -> None:
        api: Any = self._engine.api()
        where = {"path": container.OUTPUTS, "noOverwriteDirNonDir": "1"}
        with closing(api.put(api.url(f"containers/{name}/archive"), params=where, data=pieces)) as response:
            if "cannot overwrite" in response.text:
                raise WherryError("conflict", door.OCCUPIED)
            if response.status_code == 404:
                raise NotFound(response.text)
            if not response.ok:
                raise WherryError("runtime_error", f"The engine does not take it: {response.text[:300]}")
