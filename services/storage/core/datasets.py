"""Datasets as documents: what a new version changes, and who finds what."""

from typing import Any

from services.storage.core.projections import Document, moment_of
from services.storage.core.queries import Filter, cursor_after, invalid_cursor
from shared.errors import NotFound, WherryError
from shared.job import BlobRef
from shared.requests.artifacts import Artifact
from shared.requests.datasets import Dataset, DatasetListQuery, DatasetPut, DatasetQuery, DatasetUpdate, DatasetVersion

VERSIONS_MOST = 1000
DATASETS_MOST, WORDS_MOST = 500, 10
#: Fields of a dataset that a put and an update may set.
_CHANGEABLE = ("description", "labels", "visibility")


def taken(name: str) -> WherryError:
    """Return the refusal of a name that is somebody else's, of which nothing more is told."""
    return WherryError("name_taken", f"There is a dataset {name!r} already, and it is not yours: choose another name.")


def missing(name: str, version: int | None = None) -> NotFound:
    """Return the one answer for what is not there."""
    return NotFound(f"There is no dataset {name!r}." if version is None else f"There is no dataset {name}@{version}.")


def new_document(put: DatasetPut, now_us: int) -> Document:
    """Return a dataset that has no version yet."""
    return {
        "_id": put.name,
        "owner_id": put.owner_id,
        "owner_name": put.owner_name,
        "description": "",
        "labels": [],
        "visibility": "private",
        "created_us": now_us,
        "last": 0,
        "versions": [],
    }


def changes(document: Document, wanted: DatasetPut | DatasetUpdate, now_us: int) -> Document:
    """Return the fields that *wanted* sets on a dataset, with the text that searches look into."""
    given = {field: getattr(wanted, field) for field in _CHANGEABLE if getattr(wanted, field) is not None}
    if "labels" in given:
        given["labels"] = list(given["labels"])
    whole = document | given
    words = (whole["_id"], whole["description"], *whole["labels"])
    return given | {"search": "\n".join(words).casefold(), "updated_us": now_us}


def version_document(number: int, artifact: Artifact, now_us: int) -> Document:
    """Return a version as it stands in its dataset's document."""
    return {
        "version": number,
        "artifact_id": artifact.id,
        "sha256": artifact.blob.sha256,
        "size": artifact.blob.size,
        "name": artifact.name,
        "media_type": artifact.media_type,
        "created_us": now_us,
    }


def version_with(document: Document, sha256: str) -> int | None:
    """Return the number of the newest version that has these bytes."""
    numbers = [one["version"] for one in document["versions"] if one["sha256"] == sha256]
    return max(numbers, default=None)


def dataset(document: Document, query: DatasetQuery | None = None) -> Dataset:
    """Return a dataset with all its versions, or those that *query* asks for.

    Raises:
        NotFound: it has no such version.
    """
    versions = sorted((_version(one) for one in document["versions"]), key=lambda one: -one.version)
    shown = versions
    if query is not None:
        asked = query.version
        shown = versions if asked is None else [one for one in versions if one.version == asked]
        shown = shown[:1] if query.alone else shown
        if not shown:
            raise missing(query.name, asked)
    return Dataset(
        name=document["_id"],
        owner_id=document["owner_id"],
        owner_name=document["owner_name"],
        description=document["description"],
        labels=tuple(document["labels"]),
        visibility=document["visibility"],
        created_at=moment_of(document["created_us"]),
        updated_at=moment_of(document["updated_us"]),
        versions=tuple(shown),
        version_count=len(versions),
    )


def _version(document: Document) -> DatasetVersion:
    return DatasetVersion(
        version=document["version"],
        artifact_id=document["artifact_id"],
        blob=BlobRef(sha256=document["sha256"], size=document["size"]),
        name=document["name"],
        media_type=document["media_type"],
        created_at=moment_of(document["created_us"]),
    )


def list_filter(query: DatasetListQuery) -> Filter:
    """Return the filter of a page of datasets, by name. Words are only looked for, never a pattern.

    Raises:
        WherryError: ``invalid``: an unknown cursor.
    """
    wanted: list[Filter] = [{"versions": {"$ne": []}}]
    if query.viewer_id is not None:
        wanted.append({"$or": [{"owner_id": {"$eq": query.viewer_id}}, {"visibility": "shared"}]})
    if query.owner_name is not None:
        wanted.append({"owner_name": {"$eq": query.owner_name}})
    wanted += [{"$expr": _has(word)} for word in query.text.casefold().split()[:WORDS_MOST]]
    match cursor_after(query.cursor):
        case None:
            pass
        case [str(name)]:
            wanted.append({"_id": {"$gt": name}})
        case _:
            raise invalid_cursor()
    return {"$and": wanted}


def _has(word: str) -> dict[str, Any]:
    return {"$gte": [{"$indexOfCP": ["$search", {"$literal": word}]}, 0]}


def references(name: str, version: int | None) -> Filter:
    """Return the filter of jobs that have a version of a dataset, or any of it, as an input."""
    if version is not None:
        return {"datasets": f"{name}@{version}"}
    return {"datasets": {"$gte": f"{name}@", "$lt": f"{name}A"}}  # "A" follows "@"


def dataset_ref(name: str, version: int) -> str:
    """Return the name under which a version's bytes are referred to."""
    return f"dataset:{name}@{version}"
