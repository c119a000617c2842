"""What goes into the volumes of a container of a Docker engine, as tar."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from services.node_agent.adapters import source_zip, worker_program
from services.node_agent.adapters.docker_engine import Client, translated
from services.node_agent.core import archive, container, door
from services.node_agent.core.shelf import CONTENT, Given
from services.node_agent.ports import Access
from shared.fleet import Order

_TAR_PIECE_BYTES = 256 * 1024


def fill(api: Client, handle: str, pieces: Iterator[bytes], folder: str = "/") -> None:
    """Unpack a tar in a container, which need not run.

    Raises:
        WherryError: what the engine says.
    """
    with translated("putting files into the container"):
        api.put_archive(handle, folder, _joined(pieces))


def staged(
    order: Order, source: Path | None, inputs: Mapping[str, Given], access: Access | None = None
) -> Iterator[bytes]:
    """Give the tar that fills all volumes of an attempt at once."""
    params = json.dumps(order.spec.params).encode()
    yield archive.folder("workspace")
    yield archive.folder("outputs")
    yield archive.folder("run/wherry")
    yield archive.file("run/wherry/params.json", len(params), 0o444)
    yield params + archive.padding(len(params))
    if access is not None:
        token = access.token.encode()
        yield archive.file(door.TOKEN[1:], len(token), 0o400) + token + archive.padding(len(token))
    if order.map is not None:
        yield from worker_program.tar_parts(container.RUN[1:], container.WORKSPACE[1:])
    if source is not None:
        yield from source_zip.tar_of(source_zip.members(source, bytes_max=order.spec.resources.disk), "workspace")
    if inputs:
        yield archive.folder("inputs")
    for name, given in inputs.items():
        if given.is_file:
            yield archive.link(f"inputs/{name}", f"{container.input_target(name, given)}/{CONTENT}")
        else:
            yield archive.folder(f"inputs/{name}")  # to be mounted on: nothing can be made there once it is read-only
    yield archive.END


def _joined(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Give *parts* in larger pieces: each one is a chunk on the wire."""
    held = bytearray()
    for part in parts:
        held += part
        if len(held) >= _TAR_PIECE_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held)
