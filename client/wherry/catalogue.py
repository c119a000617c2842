"""The catalogue of models: what the server takes and answers, and the operations on them."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from client.wherry import models, protocol, scripts
from client.wherry.effects import Pause, Request, Script, Series

#: Seconds between two looks at a registry that is being read.
_LOOK_S = 1.0


class Lineage(models.Answer):
    """What a version was made of."""

    job_id: str
    source: str | None = None
    inputs: dict[str, str] = {}
    params: dict[str, Any] = {}
    image: str = ""
    metrics: dict[str, float] = {}


class ModelVersion(models.Answer):
    """A release of a model."""

    version: int
    image: str | None = None
    reference: str | None = None
    artifact_id: str | None = None
    description: str = ""
    params: dict[str, Any] | None = None
    size: int = 0
    lineage: Lineage | None = None
    remarks: list[str] = []
    created_by: str = ""
    created_at: datetime | None = None


class Quality(models.Answer):
    """What makes a model worse."""

    metric: str
    better: str = "higher"
    limit: float | None = None
    drop: float | None = None


class Model(models.Answer):
    """A model as of one version; `versions` are all of them, newest first (in lists the newest alone)."""

    name: str
    version: int
    description: str = ""
    image: str | None = None
    image_digest: str | None = None
    artifact_id: str | None = None
    params: dict[str, Any] | None = None
    owner: str = ""
    experts: list[str] = []
    quality: Quality | None = None
    created_at: datetime | None = None
    updated_at: datetime | None = None
    version_count: int = 0
    versions: list[ModelVersion] = []
    #: After it was released: whether there was no such version yet.
    is_new: bool | None = None


class ModelPage(models.Answer):
    """A page of models."""

    models: list[Model] = []
    cursor: str | None = None


class SyncNote(models.Answer):
    """What became of one repository."""

    repository: str
    text: str = ""


class Sync(models.Answer):
    """How far the reading of a registry is."""

    run_id: str
    registry: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    repositories: int = 0
    added: list[str] = []
    unchanged: int = 0
    failed: list[SyncNote] = []
    failures: int = 0
    error: str = ""


class Evaluation(models.Answer):
    """What a version was measured to be worth; `worse` says why, where it is worse than the model should be."""

    id: str
    model: str
    version: int
    metrics: dict[str, float] = {}
    dataset: str | None = None
    job_id: str | None = None
    note: str = ""
    worse: str | None = None
    by: str = ""
    at: datetime | None = None


class EvaluationPage(models.Answer):
    """A page of evaluations."""

    evaluations: list[Evaluation] = []
    quality: Quality | None = None
    worse: str | None = None
    cursor: str | None = None


class FineTune(models.Answer):
    """A request to a model's experts."""

    id: str
    model: str
    version: int
    message: str = ""
    dataset: str | None = None
    artifact_id: str | None = None
    state: str = "open"
    by: str = ""
    at: datetime | None = None
    told: list[str] = []
    answer: str = ""
    closed_by: str = ""
    closed_at: datetime | None = None


class FineTunePage(models.Answer):
    """A page of requests."""

    requests: list[FineTune] = []
    cursor: str | None = None


# --- requests --------------------------------------------------------------------------------------------------------


def path(ref: str, below: str = "") -> str:
    """Return the address of a model.

    Raises:
        WherryError: it can be the name of none.

    """
    return f"/models/{protocol.segment(ref)}{below}"


def given(**fields: Any) -> dict[str, Any]:
    """Return the fields that are given."""
    return {name: value for name, value in fields.items() if value is not None}


# --- operations ------------------------------------------------------------------------------------------------------


def listed(search: str, limit: int | None, patience_s: float) -> Series[Model]:
    """Give models by name."""
    return scripts.each(ModelPage, "/models", {"search": search}, lambda page: page.models, limit, patience_s)


def sync(order: Mapping[str, Any], patience_s: float) -> Script[Sync]:
    """Have a registry read, and wait for the end of it."""
    run = yield from scripts.ask(Sync, Request("POST", "/models/sync", json=dict(order)), patience_s)
    while run.ended_at is None:
        yield Pause(_LOOK_S)
        run = yield from scripts.ask(Sync, Request("GET", f"/models/sync/{protocol.segment(run.run_id)}"), patience_s)
    return run


class Questions:
    """The requests of the catalogue that are answered by one document, each with what it is answered by."""

    @staticmethod
    def show(ref: str) -> tuple[type[Model], Request]:
        """Ask for a model: `name` or `name@version`."""
        return Model, Request("GET", path(ref))

    @staticmethod
    def release(wish: Mapping[str, Any]) -> tuple[type[Model], Request]:
        """Make a model or its next version. The same again makes no other one."""
        return Model, Request("POST", "/models", json=dict(wish))

    @staticmethod
    def update(name: str, changes: Mapping[str, Any]) -> tuple[type[Model], Request]:
        """Change what is said of a model."""
        return Model, Request("PATCH", path(name), json=dict(changes))

    @staticmethod
    def run(ref: str, wish: Mapping[str, Any], key: str) -> tuple[type[models.Submitted], Request]:
        """Run a model. The key makes it safe to repeat."""
        return models.Submitted, Request("POST", path(ref, "/runs"), headers={"Idempotency-Key": key}, json=dict(wish))

    @staticmethod
    def evaluate(name: str, wish: Mapping[str, Any]) -> tuple[type[Evaluation], Request]:
        """Keep what a version was measured to be worth."""
        return Evaluation, Request("POST", path(name, "/evaluations"), json=dict(wish))

    @staticmethod
    def evaluations(name: str, version: int | None, limit: int) -> tuple[type[EvaluationPage], Request]:
        """Ask for the newest evaluations."""
        query: dict[str, str | list[str]] = {"limit": str(limit)}
        if version is not None:
            query["version"] = str(version)
        return EvaluationPage, Request("GET", path(name, "/evaluations"), query=query)

    @staticmethod
    def ask_experts(name: str, wish: Mapping[str, Any]) -> tuple[type[FineTune], Request]:
        """Ask a model's experts to make it better."""
        return FineTune, Request("POST", path(name, "/fine-tune-requests"), json=dict(wish))

    @staticmethod
    def requests(name: str, state: str | None) -> tuple[type[FineTunePage], Request]:
        """Ask for the requests to a model's experts."""
        query: dict[str, str | list[str]] = {"state": state} if state else {}
        return FineTunePage, Request("GET", path(name, "/fine-tune-requests"), query=query)

    @staticmethod
    def decline(name: str, request_id: str, why: str) -> tuple[type[FineTune], Request]:
        """Say no to a request."""
        below = f"/fine-tune-requests/{protocol.segment(request_id)}/decline"
        return FineTune, Request("POST", path(name, below), json={"why": why})


def described(params: Mapping[str, Any] | None) -> Iterator[tuple[str, str, str]]:
    """Give each parameter of a schema as its name, what it may be, and what it is for."""
    found = (params or {}).get("properties")
    required = set((params or {}).get("required") or ())
    if not isinstance(found, Mapping):
        return
    for name, part in found.items():
        if isinstance(part, Mapping):
            kinds = part.get("enum") or part.get("type") or "any"
            kind = " | ".join(str(one) for one in kinds) if isinstance(kinds, list) else str(kinds)
            preset = f" = {part['default']}" if "default" in part else ""
            yield (
                str(name),
                f"{kind}{preset}{' (required)' if name in required else ''}",
                str(part.get("description", "")),
            )
