"""Datasets: what the server takes and answers, and the operations on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from client.wherry import models, protocol, scripts
from client.wherry.effects import Request, Script, Series, Work
from client.wherry.source import ProgressCallback
from client.wherry.uploads import Note

#: How a source begins that the server has.
_THERE = ("artifact:", "job:")


@dataclass(frozen=True, slots=True)
class Wish:
    """A version of a dataset that is to be, and what is said of it; None stays as it was."""

    name: str
    description: str | None = None
    labels: Sequence[str] | None = None
    shared: bool | None = None

    def json(self, **what: str) -> dict[str, Any]:
        """Return it as the server takes it."""
        return {"name": self.name, **what, **_said(self.description, self.labels, self.shared)}


def _said(description: str | None, labels: Sequence[str] | None, shared: bool | None) -> dict[str, Any]:  # noqa: FBT001
    given = {
        "description": description,
        "labels": None if labels is None else list(labels),
        "visibility": None if shared is None else "shared" if shared else "private",
    }
    return {key: value for key, value in given.items() if value is not None}


# --- requests --------------------------------------------------------------------------------------------------------


def _path(ref: str, below: str = "") -> str:
    return f"/datasets/{protocol.segment(ref)}{below}"


def show(ref: str) -> Request:
    """Ask for a dataset: `name` or `name@version`."""
    return Request("GET", _path(ref))


def delete(ref: str) -> Request:
    """Remove a dataset or a version of it."""
    return Request("DELETE", _path(ref))


def update(name: str, description: str | None, labels: Sequence[str] | None, *, shared: bool | None) -> Request:
    """Change how a dataset is described and who sees it."""
    return Request("PATCH", _path(name), json=_said(description, labels, shared))


# --- operations ------------------------------------------------------------------------------------------------------


def listed(filters: scripts.Filters, limit: int | None, patience_s: float) -> Series[models.Dataset]:
    """Give datasets by name."""
    return scripts.each(models.DatasetPage, "/datasets", filters, lambda page: page.datasets, limit, patience_s)


def put(
    wish: Wish, source: Path | str, progress: ProgressCallback | None, patience_s: float, notes: Path | None, url: str
) -> Script[models.Dataset]:
    """Make a version of a file, of a folder (a zip that is made while it is sent), or of what the server has.

    Raises:
        SourceError: there is no such file or folder, or nothing is in it.

    """
    if isinstance(source, str) and source.startswith(_THERE):
        kind, _, artifact_id = source.partition(":")
        what = {"artifact_id": artifact_id} if kind == "artifact" else {"output": source}
        return (yield from _make(wish.json(**what), patience_s))
    path = Path(source)
    note = Note(notes, path, url) if notes and (yield Work(path.is_file)) else None
    stored = yield from scripts.put_artifact(path, path.name, progress, patience_s, note)
    return (yield from _make(wish.json(artifact_id=stored.artifact_id), patience_s))


def _make(wish: dict[str, Any], patience_s: float) -> Script[models.Dataset]:
    """Make a version of what the server has. Doing it again makes no other one: the bytes are the same."""
    return (yield from scripts.ask(models.Dataset, Request("POST", "/datasets", json=wish), patience_s))


def get(ref: str, target: Path, progress: ProgressCallback | None, patience_s: float) -> Script[models.Dataset]:
    """Bring a version to the file *target*, or into that folder, going on where a connection broke.

    Raises:
        Corrupt: what arrived is not what the server says that it is.

    """
    found = yield from scripts.ask(models.Dataset, show(ref), patience_s)
    exact = f"{found.name}@{found.version}"  # the newest may be another one before the last byte has come

    def part(start: int) -> Request:
        return protocol.download(_path(exact, "/content"), start)

    sha256 = yield from scripts.get_file(part, target, progress, patience_s)
    yield Work(partial(scripts.check_digest, target, sha256, found.sha256))
    return found
