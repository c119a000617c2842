"""Images of a Docker engine: found, and pulled."""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from services.node_agent.adapters.docker_engine import Engine, repository_of
from services.node_agent.core import container
from services.node_agent.ports import Image
from shared.errors import NotFound, WherryError
from shared.fleet import Order
from shared.states import EndReason


class DockerImages:
    """The images that one engine has, or can get."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def find(self, order: Order) -> Image | None:
        """Return the image if the engine has it: by the digest that an earlier attempt ran, else by its name."""
        for reference in dict.fromkeys(filter(None, (order.image_digest, order.spec.image))):
            with suppress(NotFound):
                return _image(await self._engine.call(self._engine.api().inspect_image, reference), order)
        return None

    async def names(self) -> tuple[str, ...]:
        """Return names and digests of the images that the engine has."""
        return tuple(container.image_names(await self._engine.call(self._engine.api().images)))

    async def pull(self, order: Order, tell: Callable[[float, str], None]) -> Image:
        """Pull the image.

        Raises:
            WherryError: ``image_not_found``, ``image_pull_failed``, or ``unavailable``.
        """
        pinned = order.image_digest if order.image_digest and "@" in order.image_digest else None
        reference = pinned or order.spec.image or ""
        cancelled = threading.Event()
        # Not waited for when nobody wants it any more: the engine may be silent for long, and leaves nothing half done.
        pull = partial(self._pull, reference, tell, cancelled)
        await self._engine.long_call(pull, give_up=cancelled.set)
        image = await self.find(order)
        if image is None:
            raise WherryError(EndReason.IMAGE_NOT_FOUND, f"{reference} was pulled and is not there.")
        return image

    def _pull(self, reference: str, tell: Callable[[float, str], None], cancelled: threading.Event) -> None:
        layers: dict[str, tuple[int, int]] = {}
        for event in self._engine.api().pulled(reference):
            if cancelled.is_set():
                return
            if "error" in event:
                raise _pull_error(reference, str(event["error"]))
            detail = event.get("progressDetail") or {}
            if event.get("status") == "Downloading" and detail.get("total"):
                layers[event["id"]] = (detail["current"], detail["total"])
                done, total = (sum(column) for column in zip(*layers.values(), strict=True))
                tell(done / total, f"pulling {reference}: {done / 1e6:.1f} of {total / 1e6:.1f} MB")


def _image(found: dict[str, Any], order: Order) -> Image:
    repository = repository_of(order.spec.image or "")
    digests: list[str] = found.get("RepoDigests") or []
    own = [digest for digest in digests if digest.partition("@")[0] == repository]
    digest = next(iter(own or digests), found["Id"])
    return Image(found["Id"], digest, found.get("Config") or {})


def _pull_error(reference: str, said: str) -> WherryError:
    """Return why a pull failed. Bytes that are not what their digest says stay wrong; all else may pass."""
    missing = ("not found", "does not exist", "manifest unknown", "access denied", "invalid reference")
    if any(words in said.lower() for words in missing):
        return WherryError(EndReason.IMAGE_NOT_FOUND, f"The image {reference} was not found: {said}")
    is_wrong = any(words in said.lower() for words in ("verification failed", "digest mismatch"))
    message = f"The image {reference} could not be pulled: {said}"
    return WherryError(EndReason.IMAGE_PULL_FAILED, message, retryable=not is_wrong)
