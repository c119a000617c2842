"""The shell program around the command of a worker, which takes what the agent says on its standard input."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from services.node_agent.core import archive
from services.node_agent.core.items import ITEMS
from shared.fleet import Order

_SHELL = "/bin/sh"
_TEXT = Path(__file__).with_name("worker.sh").read_bytes()
FILE = "worker.sh"


def argv(order: Order, folder: str, own: tuple[str, ...]) -> list[str]:
    """Return what is run for the worker of *order*.

    Args:
        order: the attempt; its `map` is set.
        folder: where the shell program is, as the worker sees it.
        own: the image's own command, for a job that has none.
    """
    mode = "warm" if order.map and order.map.warm else "each"
    return [_SHELL, f"{folder}/{FILE}", mode, *(order.spec.argv() or own)]


def as_worker(body: dict[str, Any], order: Order, folder: str, image_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return *body*, of a job's container, for a worker: its standard input stays open, whoever comes and goes."""
    own = (*(image_config.get("Entrypoint") or ()), *(image_config.get("Cmd") or ()))
    return body | {
        "Entrypoint": argv(order, folder, own),
        "Cmd": [],
        "OpenStdin": True,
        "StdinOnce": False,
        "AttachStdin": True,
    }


def tar_parts(run: str, workspace: str) -> Iterator[bytes]:
    """Give the parts of a tar that a worker needs beside what every job has, for its folders *run* and *workspace*."""
    yield archive.file(f"{run}/{FILE}", len(_TEXT), 0o444)
    yield _TEXT + archive.padding(len(_TEXT))
    for name in ("", "/in", "/out"):
        yield archive.folder(f"{workspace}/{ITEMS}{name}")


def write(run: Path, workspace: Path) -> None:
    """Make the same in folders of this machine."""
    (run / FILE).write_bytes(_TEXT)
    for name in ("in", "out"):
        (workspace / ITEMS / name).mkdir(parents=True, exist_ok=True)
