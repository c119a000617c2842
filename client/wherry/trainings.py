"""Trainings: what the server takes and answers, and the operations on them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from client.wherry import models, protocol, scripts
from client.wherry.effects import Request, Script, Series, Work
from client.wherry.errors import SourceError, WherryError
from client.wherry.source import ProgressCallback

#: What a training is made of; each is a Python module that the others import by this name.
MODULES = ("preprocessing", "algorithm", "helpers")


class Training(models.Answer):
    """A training and what has become of it; its id is that of its job. An answer to a request has its status alone."""

    training_id: str
    status: str
    name: str = ""
    owner: str = ""
    image: str | None = None
    dataset: str | None = None
    params: dict[str, Any] = {}
    distributed: dict[str, Any] | None = None
    progress: models.Progress | None = None
    metrics: dict[str, float] = {}
    node: str | None = None
    members: tuple[models.Member, ...] = ()
    created_at: datetime | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    pending: tuple[models.Pending, ...] = ()
    error: models.Failure | None = None
    remarks: tuple[str, ...] = ()
    output_job: str | None = None
    download_url: str | None = None


class TrainingPage(models.Answer):
    """Some trainings; `cursor` asks for the next."""

    trainings: tuple[Training, ...] = ()
    cursor: str | None = None


# --- requests --------------------------------------------------------------------------------------------------------


def show(training_id: str, method: str = "GET") -> Request:
    """Ask for a training, or (DELETE) that it ends."""
    return Request(method, f"/trainings/{protocol.segment(training_id)}")


# --- operations ------------------------------------------------------------------------------------------------------


def train(wish: Mapping[str, Any], key: str, patience_s: float) -> Script[Training]:
    """Hand in a training; modules that are paths are read. The key makes it safe to repeat.

    Raises:
        SourceError: a module cannot be read.

    """
    whole = dict(wish)
    for name in MODULES:
        if isinstance(whole.get(name), Path):
            whole[name] = yield Work(partial(_text, whole[name]))
    request = Request("POST", "/trainings", headers={"Idempotency-Key": key}, json=whole)
    return (yield from scripts.ask(Training, request, patience_s))


def listed(statuses: Sequence[str], name: str | None, limit: int | None, patience_s: float) -> Series[Training]:
    """Give trainings, newest first."""
    filters = {"status": ",".join(statuses), "name": name}
    return scripts.each(TrainingPage, "/trainings", filters, lambda page: page.trainings, limit, patience_s)


def download(
    training_id: str, folder: Path, progress: ProgressCallback | None, patience_s: float
) -> Script[list[Path]]:
    """Bring what a training left to *folder*.

    Raises:
        WherryError: ``not_ended``: it has not begun yet.

    """
    found = yield from scripts.ask(Training, show(training_id), patience_s)
    if found.output_job is None:
        raise WherryError("not_ended", f"training {training_id} is {found.status}: it has left nothing yet")
    return (yield from scripts.download(found.output_job, folder, None, progress, patience_s))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}") from error
