"""Map jobs: what users may write of their items, which items a job gets, and under which names results are shown."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from services.gateway.core.glob import Glob
from services.gateway.core.problems import invalid
from shared.errors import FieldProblem, WherryError
from shared.job import Item, Job
from shared.manifest import Entry
from shared.spec import ITEMS_AT_ONCE, ITEMS_MAX, Input, InputName, ItemSpec, JobSpec

#: The input that `map.over` becomes.
OVER: InputName = "over"
#: Fields of an item that are not for users.
OURS = frozenset({"sha256", "size", "given"})
#: JSON bytes of one item, and of the items of one message: an event carries the job beside them.
ITEM_BYTES_MAX, MESSAGE_BYTES = 16 * 1024, 256 * 1024


def unusable(spec: JobSpec) -> list[FieldProblem]:
    """Return what is wrong with the map of a spec as it was sent."""
    if spec.map is None:
        return []
    found: list[FieldProblem] = []
    if spec.map.over is None and not spec.map.items and not spec.map.open:
        found.append(_problem("map", "There is nothing to do: give `over`, `items`, or `open` to add items later"))
    if spec.map.pattern is not None and spec.map.over is None:
        found.append(_problem("map.pattern", "This chooses among the files of `over`, which is not given"))
    if spec.map.over is not None and OVER in spec.inputs:
        found.append(_problem(f"inputs.{OVER}", "`map.over` is an input of this name: give yours another"))
    return found + unusable_items(spec.map.items, spec.inputs, "map.items")


def unusable_items(items: Sequence[ItemSpec], inputs: Iterable[str], field: str) -> list[FieldProblem]:
    """Return what is wrong with items as they were sent. *inputs* are the names of the job's inputs."""
    found: list[FieldProblem] = []
    known, ids = set(inputs), set[str]()
    for at, item in enumerate(items):
        place = f"{field}.{at}"
        found += [_problem(f"{place}.{ours}", "There is no such field") for ours in item.model_fields_set & OURS]
        if item.artifact is not None and item.path is not None:
            found.append(_problem(place, "An item is an artifact or a path below an input, not both"))
        if item.path is not None and (wrong := _wrong_path(item.path, known)):
            found.append(_problem(f"{place}.path", wrong))
        if item.id is not None and item.id in ids:
            found.append(_problem(f"{place}.id", "Another item of this request has the same id"))
        if item.params and item.bytes > ITEM_BYTES_MAX:
            found.append(_problem(place, f"An item may have {ITEM_BYTES_MAX} bytes; send large things as artifacts"))
        found += not_json(item.params, f"{place}.params")
        ids |= {item.id} if item.id else set[str]()
    return found


def not_json(value: object, path: str) -> list[FieldProblem]:
    """Return which numbers in *value* JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return [_problem(path, "JSON knows no NaN and no infinity")]
    inner: Iterable[tuple[object, object]] = ()
    if isinstance(value, Mapping):
        inner = value.items()  # pyright: ignore[reportUnknownVariableType] - JSON
    elif isinstance(value, Sequence) and not isinstance(value, str):
        inner = enumerate(value)  # pyright: ignore[reportUnknownArgumentType] - JSON
    return [problem for key, one in inner for problem in not_json(one, f"{path}.{key}")]


def _wrong_path(path: str, inputs: set[str]) -> str | None:
    name, _, rest = path.partition("/")
    if name not in inputs or not rest:
        return f"This is no `<input>/<path>`; the job's inputs: {', '.join(sorted(inputs)) or 'none'}"
    if path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        return "A path has no empty part, no `.` and no `..`"
    return None


def with_over(spec: JobSpec) -> JobSpec:
    """Return *spec* with the zip of `map.over` as an input."""
    if spec.map is None or spec.map.over is None:
        return spec
    return spec.model_copy(update={"inputs": spec.inputs | {OVER: Input(source=spec.map.over)}})


def without_items(spec: JobSpec) -> JobSpec:
    """Return *spec* without the items, which are not recorded with it."""
    return spec.model_copy(update={"map": spec.map.model_copy(update={"items": ()})}) if spec.map else spec


def of_files(paths: Iterable[str], pattern: str | None) -> list[ItemSpec]:
    """Return an item for each file of the zip of `map.over` that matches *pattern*, in the order of their paths.

    Raises:
        WherryError: ``invalid``: none does, or too many do.
    """
    wanted = matcher(pattern)
    found = [
        ItemSpec(name=path.rpartition("/")[2][:255], path=f"{OVER}/{path}") for path in sorted(paths) if wanted(path)
    ]
    if not found:
        raise invalid([_problem("map.pattern", f"None of the files matches {pattern!r}")])
    check_count(len(found))
    return found


def named(item: ItemSpec, name: str) -> ItemSpec:
    """Return *item* under its own name, else (where there is one) under *name*, its file's."""
    return item if "name" in item.model_fields_set or not name else item.model_copy(update={"name": name[:255]})


def matcher(pattern: str | None) -> Callable[[str], object]:
    """Return what tells whether a path matches *pattern*; None matches all.

    As in a shell ``*`` and ``?`` stand for no slash and ``**`` stands for any folders. A pattern without a slash is for
    the file's name, whatever folder it is in.

    Raises:
        WherryError: ``invalid``: it is no pattern.
    """
    if pattern is None:
        return lambda _: True
    try:
        return Glob(pattern if "/" in pattern else f"**/{pattern}").match
    except ValueError:
        raise invalid(
            [_problem("map.pattern", "This is no pattern: its brackets have a range that ends first")]
        ) from None


def check_count(count: int) -> None:
    """Let a job have *count* items.

    Raises:
        WherryError: ``invalid``.
    """
    if count > ITEMS_MAX:
        raise invalid([_problem("items", f"A job may have {ITEMS_MAX:,} items; these would be {count:,}")])


def check_bytes(items: Iterable[ItemSpec], before: int, most: int) -> None:
    """Let a job have *items* beside those of *before* bytes that it has.

    Raises:
        WherryError: ``too_large``: together they would have more than *most* bytes.
    """
    size = before + sum(item.bytes for item in items)
    if size > most:
        raise WherryError(
            "too_large",
            f"The names and params of all items of a job may have {most:,} bytes together; these would be {size:,}. "
            "Put what is large into files of a dataset or an artifact, and name them by `over`, `path` or `artifact`.",
        )


def messages(items: Sequence[ItemSpec]) -> Iterator[tuple[ItemSpec, ...]]:
    """Give *items* in order, as many at a time as one message may have."""
    batch: list[ItemSpec] = []
    room = MESSAGE_BYTES
    for item in items:
        room -= item.bytes
        if batch and (len(batch) == ITEMS_AT_ONCE or room < 0):
            yield tuple(batch)
            batch, room = [], MESSAGE_BYTES - item.bytes
        batch.append(item)
    if batch:
        yield tuple(batch)


def require_map(job: Job) -> None:
    """Let a map job pass.

    Raises:
        WherryError: ``conflict``: it is none.
    """
    if job.spec.map is None:
        raise WherryError("conflict", f"Job {job.id} is of kind {job.spec.kind}; only map jobs have items.")


def require_open(job: Job, count: int) -> None:
    """Let a map job pass that may get *count* more items.

    Raises:
        WherryError: ``closed``; ``invalid``: they would be too many.
    """
    require_map(job)
    if job.is_terminal or job.cancel_requested_at is not None:
        state = "cancelled" if job.cancel_requested_at and not job.is_terminal else job.state.value
        raise WherryError("closed", f"Job {job.id} is {state}: it takes no more items.")
    if is_closed(job):
        raise WherryError("closed", f"Job {job.id} is closed: it takes no more items.")
    check_count(count + (job.items.total if job.items else 0))


def is_closed(job: Job) -> bool:
    """Return whether a map job gets no more items."""
    return job.is_terminal or (job.items is not None and job.items.closed)


def again(items: Iterable[Item], ids: Iterable[str]) -> list[ItemSpec]:
    """Return *items* as those of another job, under the ids that it has for them."""
    return [one.spec.model_copy(update={"id": item_id}) for one, item_id in zip(items, ids, strict=True)]


# --- results as files ----------------------------------------------------------------------------------------------


def entries(job_id: str, item: Item) -> list[Entry]:
    """Return what an item has left as files: ``<job>/<number>-<name>``, a folder of this name where they are several.

    The number is the item's place in its job, from 1: names stay what they are while more items end.
    """
    place = f"{job_id}/{item.index + 1:04d}-{_plain(item.spec.name)}"
    mtime = item.ended_at.timestamp() if item.ended_at else 0.0
    alone = len(item.files) == 1 and "/" not in item.files[0].path
    return [
        Entry(path=_named_as(place, file.path) if alone else f"{place}/{file.path}", blob=file.blob, mtime=mtime)
        for file in item.files
    ]


def index_of(job_id: str, path: str) -> int | None:
    """Return the index of the item that has left *path*, by its name as `entries` makes it."""
    found = re.match(rf"{re.escape(job_id)}/(\d{{4,9}})-", path)
    return int(found[1]) - 1 if found and int(found[1]) else None


def _plain(name: str) -> str:
    """Return *name* as one name of a file, in any file system, short enough to get a number and an ending."""
    plain = re.sub(r'[/\\:*?"<>|\x00-\x1f\x7f]', "_", name).strip(" .") or "item"
    cut = plain.encode()[:180].decode(errors="ignore")
    suffix = _ending(plain)
    return cut if cut == plain or len(suffix) > 16 else f"{cut[: -len(suffix) or None]}{suffix}"


def _ending(path: str) -> str:
    """Return the ending of a file's name with its dot, or nothing: ``.hidden`` has none."""
    stem, _, ending = path.rpartition("/")[2].rpartition(".")
    return f".{ending}" if stem and ending else ""


def _named_as(place: str, path: str) -> str:
    """Return *place* with the ending of *path*, which says what the program has really written."""
    ending = _ending(path)
    is_told = not 1 < len(ending) <= 16 or place.lower().endswith(ending.lower())
    return place if is_told else f"{_without_ending(place)}{ending}"


def _without_ending(place: str) -> str:
    suffix = _ending(place)
    return place[: -len(suffix)] if 1 < len(suffix) <= 6 else place


def _problem(field: str, message: str) -> FieldProblem:
    return FieldProblem(field=field, message=message)
