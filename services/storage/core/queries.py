"""From questions to MongoDB filters and pages. Users' text is only ever a value to compare with, never an operator."""

import base64
import binascii
import json
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from services.storage.core.projections import view_key
from shared.errors import FieldProblem, WherryError
from shared.events import LogLine
from shared.requests.artifacts import ArtifactListQuery
from shared.requests.jobs import EventQuery, ItemListQuery, JobListQuery, LogQuery
from shared.states import ItemState, JobState

Filter = dict[str, Any]

JOBS_MOST, EVENTS_MOST, LINES_MOST, ENTRIES_MOST, ITEMS_MOST = 500, 1000, 5000, 5000, 1000
#: Metric points of one attempt that are looked at; an agent sends fewer.
POINTS_MOST = 300_000
NODES_MOST, LETTERS_MOST, ARTIFACTS_MOST = 1000, 200, 1000
#: The largest number that MongoDB knows.
NUMBER_MOST = 2**63 - 1
#: JSON bytes of an answer's main part: below the broker's largest message, with room for the rest.
ANSWER_BYTES_MOST = 768 * 1024


def bounded(limit: int, most: int) -> int:
    """Return *limit* within 1 and *most*."""
    return max(1, min(limit, most))


def fitting(sizes: Iterable[int], most: int = ANSWER_BYTES_MOST) -> int:
    """Return how many things of these *sizes* fit into *most* bytes; at least one: a page never stands still."""
    total = count = 0
    for size in sizes:
        total += size
        if count and total > most:
            break
        count += 1
    return count


def cursor_text(*place: str | int) -> str:
    """Return a cursor that continues after what stands at *place* in a list. Opaque to users."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def cursor_after(cursor: str | None) -> list[Any] | None:
    """Return the place that a cursor points at, or None without one.

    Raises:
        WherryError: ``invalid``: it is not one of ours.
    """
    if not cursor:
        return None
    try:
        place = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError, RecursionError) as error:
        raise invalid_cursor() from error
    if not isinstance(place, list) or not all(map(_is_storable, place)):  # pyright: ignore[reportUnknownArgumentType] - JSON
        raise invalid_cursor()
    return place  # pyright: ignore[reportUnknownVariableType] - JSON


def text_behind(cursor: str | None) -> str:
    """Return the text that a cursor of one text points at; without one, what stands before every text.

    Raises:
        WherryError: ``invalid``: it is not one of ours.
    """
    match cursor_after(cursor):
        case None:
            return ""
        case [str(text)]:
            return text
        case _:
            raise invalid_cursor()


def _is_storable(value: object) -> bool:
    """Return whether MongoDB can compare with *value*: half a character, or a number beyond 64 bits, it cannot take."""
    if isinstance(value, str):
        return value.isascii() or value == value.encode(errors="replace").decode()
    return type(value) is int and abs(value) <= NUMBER_MOST


def invalid_cursor() -> WherryError:
    """Return the refusal of a cursor that no list of ours gave."""
    problem = FieldProblem(field="cursor", message="take it from the page before, as it is")
    return WherryError("invalid", "The cursor is not one that a list gave.", fields=(problem,))


def jobs_filter(query: JobListQuery) -> Filter:
    """Return the filter of a page of jobs, newest first.

    Raises:
        WherryError: ``invalid``: an unknown state or cursor.
    """
    wanted = _in_states(query.states, JobState)
    for field, value in (
        ("owner_id", query.owner_id),
        ("name", query.name),
        ("kind", query.kind),
        ("labels", query.label),
    ):
        if value is not None:
            wanted[field] = {"$eq": value}
    if query.view is not None:
        wanted["view"] = {"$eq": view_key(query.view)}
    wanted["gang_id"] = {"$eq": query.gang_id}  # null is also what a document without the field has
    match cursor_after(query.cursor):
        case None:
            return wanted
        case [int(created_us), str(job_id)]:
            before = [{"created_us": {"$lt": created_us}}, {"created_us": created_us, "_id": {"$lt": job_id}}]
            return wanted | {"$or": before}
        case _:
            raise invalid_cursor()


def items_filter(query: ItemListQuery) -> Filter:
    """Return the filter of a page of items, in the order in which they came.

    Raises:
        WherryError: ``invalid``: an unknown state or cursor.
    """
    wanted = {"job_id": {"$eq": query.job_id}} | _in_states(query.states, ItemState)
    match cursor_after(query.cursor):
        case None:
            return wanted | {"index": {"$gt": query.after}}
        case [int(index)]:
            return wanted | {"index": {"$gt": index}}
        case _:
            raise invalid_cursor()


def _in_states(states: Sequence[str], known: type[StrEnum]) -> Filter:
    if unknown := set(states) - {state.value for state in known}:
        problem = FieldProblem(field="state", message=f"unknown: {', '.join(sorted(unknown))}")
        raise WherryError("invalid", "There is no such state.", fields=(problem,))
    return {"state": {"$in": list(states)}} if states else {}


def artifacts_filter(query: ArtifactListQuery) -> Filter:
    """Return the filter of a page of artifacts, newest first.

    Raises:
        WherryError: ``invalid``: an unknown cursor.
    """
    wanted: Filter = {} if query.owner_id is None else {"owner_id": {"$eq": query.owner_id}}
    match cursor_after(query.cursor):
        case None:
            return wanted
        case [int(created_us), str(artifact_id)]:
            before = [{"created_us": {"$lt": created_us}}, {"created_us": created_us, "_id": {"$lt": artifact_id}}]
            return wanted | {"$or": before}
        case _:
            raise invalid_cursor()


def events_filter(query: EventQuery) -> Filter:
    """Return the filter of events after a sequence."""
    wanted: Filter = {"_id": {"$gt": query.after_seq}}
    if query.job_id is not None:
        wanted["job_id"] = {"$eq": query.job_id}
    if query.owner_id is not None:
        wanted["owner_id"] = {"$eq": query.owner_id}
    return wanted


def logs_filter(key: str, query: LogQuery, since_us: int | None) -> Filter:
    """Return the filter of the documents that may have wanted lines."""
    wanted: Filter = {"key": key, "last": {"$gt": query.after}}
    if since_us is not None:
        wanted["until_us"] = {"$gte": since_us}
    return wanted


def is_wanted(line: LogLine, query: LogQuery) -> bool:
    """Return whether a line is one that the query asks for."""
    return (
        line.n > query.after
        and (query.stream is None or line.s == query.stream)
        and (query.since is None or line.t >= query.since)
    )
