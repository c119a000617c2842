"""Models as documents: what a new version changes, and when one has become worse."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from services.storage.core.projections import Document, microseconds, moment_of
from services.storage.core.queries import Filter, cursor_after, cursor_text, invalid_cursor
from shared.catalogue import (
    Evaluation,
    EvaluationPut,
    EvaluationQuery,
    FineTune,
    FineTuneQuery,
    Lineage,
    Model,
    ModelListQuery,
    ModelPut,
    ModelUpdate,
    ModelVersion,
    Quality,
)
from shared.errors import NotFound, WherryError
from shared.events import DeliveryRequested

MODELS_MOST, WORDS_MOST = 500, 10
_ROUNDING = 1e-9


def missing(name: str, version: int | None = None) -> NotFound:
    """Return the one answer for what is not there."""
    return NotFound(f"There is no model {name!r}." if version is None else f"There is no model {name}@{version}.")


def taken(name: str) -> WherryError:
    """Return the refusal of a name that is somebody else's."""
    return WherryError("name_taken", f"There is a model {name!r} already, and it is not yours: choose another name.")


def new_model(put: ModelPut, now_us: int) -> Document:
    """Return a model that has no version yet."""
    return {
        "_id": put.name,
        "owner_id": put.owner_id,
        "owner_name": put.owner_name,
        "description": "",
        "experts": [],
        "quality": None,
        "created_us": now_us,
        "last": 0,
    }


def changes(
    document: Document, now_us: int, *, description: str | None, experts: Sequence[str] | None, quality: Quality | None
) -> Document:
    """Return the fields that are set on a model, with the text that searches look into."""
    given: Document = {}
    if description is not None:
        given["description"] = description
    if experts is not None:
        given["experts"] = list(dict.fromkeys(experts))
    if quality is not None:
        given["quality"] = quality.model_dump()
    words = (document["_id"], (document | given)["description"])
    return given | {"search": "\n".join(words).casefold(), "updated_us": now_us}


def updated(document: Document, update: ModelUpdate, now_us: int) -> Document:
    """Return the fields that *update* sets."""
    found = changes(document, now_us, description=update.description, experts=update.experts, quality=update.quality)
    return found | {"quality": None} if update.no_quality else found


def version_document(name: str, version: ModelVersion, sha256: str | None) -> Document:
    """Return a version as it is kept. A schema is kept as text: its keys are nobody's fields."""
    return {
        "_id": f"{name}@{version.version}",
        "model": name,
        "version": version.version,
        "image": version.image,
        "reference": version.reference,
        "artifact_id": version.artifact_id,
        "sha256": sha256,
        "description": version.description,
        "params": None if version.params is None else json.dumps(version.params),
        "size": version.size,
        "lineage": None if version.lineage is None else version.lineage.to_bytes().decode(),
        "remarks": list(version.remarks),
        "created_by": version.created_by,
        "created_us": microseconds(version.created_at),
    }


def version_of(document: Document) -> ModelVersion:
    """Return a version."""
    return ModelVersion(
        version=document["version"],
        image=document["image"],
        reference=document["reference"],
        artifact_id=document["artifact_id"],
        description=document["description"],
        params=None if document["params"] is None else json.loads(document["params"]),
        size=document["size"],
        lineage=None if document["lineage"] is None else Lineage.from_bytes(document["lineage"].encode()),
        remarks=tuple(document["remarks"]),
        created_by=document["created_by"],
        created_at=moment_of(document["created_us"]),
    )


def model_of(document: Document, versions: Iterable[Document], count: int) -> Model:
    """Return a model with *versions* of the *count* that it has."""
    quality = document["quality"]
    return Model(
        name=document["_id"],
        owner_id=document["owner_id"],
        owner_name=document["owner_name"],
        description=document["description"],
        experts=tuple(document["experts"]),
        quality=None if quality is None else Quality.model_validate(quality),
        created_at=moment_of(document["created_us"]),
        updated_at=moment_of(document["updated_us"]),
        versions=tuple(version_of(one) for one in versions),
        version_count=count,
    )


def list_filter(query: ModelListQuery) -> Filter:
    """Return the filter of a page of models, by name. Words are only looked for, never a pattern.

    Raises:
        WherryError: ``invalid``: an unknown cursor.
    """
    words = query.text.casefold().split()[:WORDS_MOST]
    wanted: list[Filter] = [{"$expr": {"$gte": [{"$indexOfCP": ["$search", {"$literal": word}]}, 0]}} for word in words]
    match cursor_after(query.cursor):
        case None:
            pass
        case [str(name)]:
            wanted.append({"_id": {"$gt": name}})
        case _:
            raise invalid_cursor()
    return {"$and": wanted} if wanted else {}


def newest_first(wanted: Filter, cursor: str | None) -> Filter:
    """Return *wanted*, behind *cursor* in the order of `at_us` and `_id`, both falling.

    Raises:
        WherryError: ``invalid``: an unknown cursor.
    """
    match cursor_after(cursor):
        case None:
            return wanted
        case [int(at_us), str(last)]:
            return wanted | {"$or": [{"at_us": {"$lt": at_us}}, {"at_us": at_us, "_id": {"$lt": last}}]}
        case _:
            raise invalid_cursor()


def cursor_behind(document: Document) -> str:
    """Return the cursor for what follows *document* in that order."""
    return cursor_text(document["at_us"], document["_id"])


# --- quality -----------------------------------------------------------------------------------------------------


def why_worse(quality: Quality | None, metrics: Mapping[str, float], best_before: float | None) -> str | None:
    """Return why a measurement is worse than the model should be, or None.

    Args:
        quality: what the model should be.
        metrics: what was measured.
        best_before: the best value of the metric that was measured of any version before; None: there is none.
    """
    if quality is None or (value := metrics.get(quality.metric)) is None:
        return None
    sign = 1.0 if quality.better == "higher" else -1.0
    side = "below" if quality.better == "higher" else "above"
    if quality.limit is not None and sign * value < sign * quality.limit:
        return f"{quality.metric} is {value:g}, {side} the limit of {quality.limit:g}"
    # Compared with a little to spare: 0.9 - 0.8 is not quite 0.1.
    if (
        quality.drop is not None
        and best_before is not None
        and sign * (best_before - value) >= quality.drop - _ROUNDING
    ):
        return f"{quality.metric} is {value:g}, {abs(best_before - value):g} off the best so far, {best_before:g}"
    return None


def best(quality: Quality | None, measured: Iterable[Mapping[str, float]]) -> float | None:
    """Return the best value of the model's metric among what was measured."""
    if quality is None:
        return None
    values = [one[quality.metric] for one in measured if quality.metric in one]
    return (max if quality.better == "higher" else min)(values, default=None)


def evaluation_document(put: EvaluationPut, version: int, worse: str | None, at: datetime) -> Document:
    """Return an evaluation as it is kept."""
    kept = Evaluation(
        id=put.id, model=put.model, version=version, metrics=put.metrics, dataset=put.dataset, job_id=put.job_id,
        note=put.note, worse=worse, by=put.by, at=at,
    )  # fmt: skip
    head = {"_id": put.id, "model": put.model, "version": version, "at_us": microseconds(at)}
    return head | {"body": kept.to_bytes().decode()}


def evaluation_of(document: Document) -> Evaluation:
    """Return an evaluation."""
    return Evaluation.from_bytes(document["body"].encode())


def evaluations_filter(query: EvaluationQuery) -> Filter:
    """Return the filter of a page of evaluations.

    Raises:
        WherryError: ``invalid``: an unknown cursor.
    """
    wanted: Filter = {"model": query.model} | ({} if query.version is None else {"version": query.version})
    return newest_first(wanted, query.cursor)


# --- requests to experts -----------------------------------------------------------------------------------------


def fine_tune_document(request: FineTune, untold: Sequence[DeliveryRequested] = ()) -> Document:
    """Return a request as it is kept, with what is still to be handed to the notifier."""
    return {
        "untold": [one.to_bytes().decode() for one in untold],
        "_id": request.id,
        "model": request.model,
        "version": request.version,
        "message": request.message,
        "dataset": request.dataset,
        "artifact_id": request.artifact_id,
        "state": request.state,
        "by_id": request.by_id,
        "by": request.by,
        "at_us": microseconds(request.at),
        "told": list(request.told),
        "answer": request.answer,
        "closed_by": request.closed_by,
        "closed_us": None,
    }


def fine_tune_of(document: Document) -> FineTune:
    """Return a request."""
    closed_us = document["closed_us"]
    return FineTune(
        id=document["_id"],
        model=document["model"],
        version=document["version"],
        message=document["message"],
        dataset=document["dataset"],
        artifact_id=document["artifact_id"],
        state=document["state"],
        by_id=document["by_id"],
        by=document["by"],
        at=moment_of(document["at_us"]),
        told=tuple(document["told"]),
        answer=document["answer"],
        closed_by=document["closed_by"],
        closed_at=None if closed_us is None else moment_of(closed_us),
    )


def untold(document: Document) -> list[DeliveryRequested]:
    """Return who is still to be told of a request."""
    return [DeliveryRequested.from_bytes(body.encode()) for body in document["untold"]]


def fine_tunes_filter(query: FineTuneQuery) -> Filter:
    """Return the filter of a page of requests.

    Raises:
        WherryError: ``invalid``: an unknown cursor.
    """
    given = {"model": query.model, "state": query.state}
    return newest_first({name: value for name, value in given.items() if value is not None}, query.cursor)


def closed(state: str, answer: str, by: str, now_us: int) -> Document:
    """Return the fields that close a request."""
    return {"state": state, "answer": answer, "closed_by": by, "closed_us": now_us}
