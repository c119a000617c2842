"""``wherry map``, ``wherry items`` and ``wherry filter``: one program over many files."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from client.wherry import mapping, models
from client.wherry.cli.console import Output, as_json
from client.wherry.cli.session import LONG_PATIENCE_S, connect
from client.wherry.cli.spec import SpecOptions, build_spec, read_spec
from client.wherry.cli.words import between, harmless, plain, plural, size
from client.wherry.client import Client
from client.wherry.errors import SourceError, WherryError

A = TypeVar("A")
B = TypeVar("B")
EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
#: Seconds between two looks at how far it is: the first, and the longest.
_FIRST_LOOK_S, _SLOWEST_LOOK_S = 0.1, 1.0

Files = Annotated[list[Path], typer.Argument(metavar="FILES", help="The files.", show_default=False)]
AtOnce = Annotated[int, typer.Option("--at-once", min=1, max=64, help="Files that are sent or fetched at a time.")]
Folder = Annotated[Path | None, typer.Option("--output", "-o", help="Wait, and bring the results to this folder.")]


# --- wherry filter ---------------------------------------------------------------------------------------------------


def filter_images(
    ctx: typer.Context,
    filter_: Annotated[
        str, typer.Argument(metavar="FILTER", help="grayscale, blur, or one of your own.", show_default=False)
    ],
    files: Files,
    *,
    folder: Annotated[Path, typer.Option("--output", "-o", help="Where the filtered images go.")],
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    at_once: AtOnce = 4,
) -> None:
    """Filter images: send them, several at a time, and bring each result home under its own name."""
    output: Output = ctx.obj
    with connect(patience_s=LONG_PATIENCE_S) as client, _bar(output) as bar:
        workload = client.create_workload(filter_, name=name)
        output.note(f"workload {workload.workload_id}")
        try:
            sent = _at_once(bar, "sending", at_once, files, lambda path: _sent(client, workload.workload_id, path))
            client.close_job(workload.workload_id)
            done = _watch_images(client, workload.workload_id, bar)
            wanted = _targets(files, sent, done, folder)
            saved = _at_once(bar, "getting", at_once, wanted, lambda one: client.get_image(*one))
        except KeyboardInterrupt:
            output.note(f"workload {workload.workload_id} goes on\n  stop it: wherry cancel {workload.workload_id}")
            raise typer.Exit(EXIT_INTERRUPTED) from None
    failures = [(file.name, one) for file, one in zip(files, sent, strict=True) if isinstance(one, str)]
    failures += [(one.name, one.message) for one in done.failed_images]
    if output.json:
        said = {"files": [str(path) for path in saved], "failed": [{"name": one, "why": why} for one, why in failures]}
        output.document(as_json(done) | said)
    else:
        for path in saved:
            output.out.print(str(path), markup=False)
    for failed, why in failures:
        output.note(f"{plain(failed)}: {harmless(why)}")
    output.note(f"{plural(len(saved), 'image')} in {folder}" + (f", {len(failures)} failed" if failures else ""))
    if len(saved) < len(files):
        raise typer.Exit(EXIT_FAILED)


def _sent(client: Client, workload_id: str, path: Path) -> mapping.Image | str:
    """Return an image that was taken in, or why it was not."""
    try:
        return client.put_image(workload_id, path)
    except WherryError as error:
        if error.code in ("not_an_image", "too_large") or isinstance(error, SourceError):
            return error.detail
        raise


def _watch_images(client: Client, workload_id: str, bar: Progress) -> mapping.Workload:
    task = bar.add_task("filtering", total=None)
    pause = _FIRST_LOOK_S
    while True:
        found = client.workload(workload_id)
        waits = "; ".join(found.pending) if found.status == "scheduling" else ""
        ended = found.images.filtered + found.images.failed
        bar.update(task, total=found.images.total, completed=ended, description=plain(waits) or "filtering")
        # Closed: one without a single image has ended too.
        if found.status == "completed" or (found.closed and not found.images.total):
            return found
        time.sleep(pause)
        pause = min(pause * 1.3, _SLOWEST_LOOK_S)


def _targets(
    files: Sequence[Path], sent: Sequence[mapping.Image | str], done: mapping.Workload, folder: Path
) -> list[tuple[str, Path]]:
    """Return the images to fetch and where to: under their own names, numbered where two have the same."""
    names = Counter(file.name for file in files)
    ready = set(done.filtered_images)
    found: list[tuple[str, Path]] = []
    for number, (file, image) in enumerate(zip(files, sent, strict=True), 1):
        # A result has the id of its original but for the first letter.
        if isinstance(image, mapping.Image) and f"f{image.image_id[1:]}" in ready:
            name = file.name if names[file.name] == 1 else f"{number:04d}-{file.name}"
            found.append((f"f{image.image_id[1:]}", folder / name))
    return found


# --- wherry map ------------------------------------------------------------------------------------------------------


def map_files(  # noqa: PLR0913 - each option of the command is one
    ctx: typer.Context,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILES", help="Files, each an item; or a zip or folder of them.", show_default=False),
    ] = None,
    *,
    command: Annotated[
        str | None,
        typer.Option("--command", "-c", help="Reads $WHERRY_IN, writes $WHERRY_OUT.", show_default=False),
    ] = None,
    over: Annotated[str | None, typer.Option(help="A zip that is there: dataset:NAME or artifact:ID.")] = None,
    pattern: Annotated[
        str | None, typer.Option(help="Of a zip or folder, the files that match: *.png, photos/**.")
    ] = None,
    item: Annotated[list[str] | None, typer.Option(help="An item without a file, by name; may be given again.")] = None,
    spec: Annotated[Path | None, typer.Option("--spec", help="A JSON file with the rest; options win over it.")] = None,
    source: Annotated[Path | None, typer.Option(help="A folder or zip with the program.")] = None,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    image: Annotated[str | None, typer.Option(help="The image to run in.")] = None,
    runtime: Annotated[str | None, typer.Option(help="docker, or process: on the bare machine.")] = None,
    warm: Annotated[bool, typer.Option(help="Start the command once a worker, and give it item after item.")] = False,
    parallel: Annotated[int | None, typer.Option("--parallel", "-p", min=1, help="Workers at a time; 4.")] = None,
    tries: Annotated[int | None, typer.Option(min=1, help="How often an item is tried that fails; 1.")] = None,
    timeout: Annotated[str | None, typer.Option(help="The longest that one item may take, e.g. 10m.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs of each worker.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of each worker, e.g. 4GiB.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each worker.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only nodes with this tag; may be given again.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="A parameter, NAME=VALUE, the value JSON or text.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be given again.")] = None,
    key: Annotated[str | None, typer.Option(help="The same key is the same job.")] = None,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it has ended.")] = False,
    folder: Folder = None,
    at_once: AtOnce = 4,
) -> None:
    """Run one command for each of many files, over all machines."""
    output: Output = ctx.obj
    typed = SpecOptions(
        name=name, image=image, command=command, runtime=runtime, cpus=cpus, memory=memory, gpus=gpus,
        tags=tuple(tag or ()), params=tuple(param or ()), labels=tuple(label or ()),
    )  # fmt: skip
    wish: dict[str, Any] = build_spec(read_spec(spec), typed, None) | {"kind": "map"}
    given: dict[str, Any] = {
        "over": over, "pattern": pattern, "warm": warm or None, "parallelism": parallel, "item_attempts": tries,
        "item_timeout": timeout,
    }  # fmt: skip
    wish["map"] = {**wish.get("map", {}), **{field: value for field, value in given.items() if value is not None}}
    mapped = wish["map"]
    if not (files or item or mapped.get("over") or mapped.get("items") or mapped.get("open")):
        raise typer.BadParameter("give files, --over or --item: there is nothing to do", param_hint="FILES")
    with connect(patience_s=LONG_PATIENCE_S) as client, _bar(output) as bar:
        _add_files(client, wish["map"], files or [], at_once, bar)
        wish["map"]["items"] = [*wish["map"].get("items", []), *(item or ())]
        submitted = client.submit(wish, source, key=key)
    if not follow_it and folder is None:
        if output.json:
            output.document(submitted)
            return
        output.out.print(submitted.job_id, markup=False)
        output.note(f"{submitted.state}; see its items with: wherry items {submitted.job_id}")
        return
    _watch_and_fetch(output, submitted.job_id, folder)


def _add_files(client: Client, wish: dict[str, Any], files: list[Path], at_once: int, bar: Progress) -> None:
    folders = [path for path in files if path.is_dir()]
    if folders and (len(files) > 1 or "over" in wish):
        raise SourceError(f"{folders[0]} is a folder: give it alone, its files are the items")
    if len(files) == 1 and (folders or files[0].suffix.lower() == ".zip") and "over" not in wish:
        wish["over"] = f"artifact:{client.put_artifact(files[0]).artifact_id}"
        return
    stored = _at_once(bar, "sending", at_once, files, client.put_artifact)
    found = [{"artifact": one.artifact_id, "name": file.name} for file, one in zip(files, stored, strict=True)]
    wish["items"] = [*wish.get("items", []), *found]


def _watch_and_fetch(output: Output, job_id: str, folder: Path | None) -> None:
    output.note(f"job {job_id}")
    try:
        with connect(patience_s=LONG_PATIENCE_S) as client, _bar(output) as bar:
            job = _watch_items(client, job_id, bar)
            failed = list(client.items(job_id, states=("failed",)))
            saved = client.download(job_id, folder) if folder is not None else []
    except KeyboardInterrupt:
        output.note(f"job {job_id} goes on\n  stop it: wherry cancel {job_id}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if output.json:
        output.document(as_json(job) | {"files": [str(path) for path in saved]})
    for one in failed:
        output.note(f"{plain(one.name)}: {harmless(one.error.message) if one.error else 'failed'}")
    counts = job.items or models.ItemCounts()
    output.note(f"job {job_id} {job.state}: {counts.succeeded} succeeded, {counts.failed} failed")
    if folder is not None:
        output.note(f"{plural(len(saved), 'file')} in {folder / job_id}")
    if job.state != "succeeded":
        raise typer.Exit(EXIT_FAILED)


def _watch_items(client: Client, job_id: str, bar: Progress) -> models.Job:
    task = bar.add_task("working", total=None)
    pause = _FIRST_LOOK_S
    while True:
        job = client.job(job_id)
        if job.items:
            waits = "; ".join(reason.message for reason in job.pending)
            ended = job.items.succeeded + job.items.failed
            bar.update(task, total=job.items.total, completed=ended, description=plain(waits) or "working")
        if job.is_terminal:
            return job
        time.sleep(pause)
        pause = min(pause * 1.3, _SLOWEST_LOOK_S)


# --- wherry items ----------------------------------------------------------------------------------------------------


def items(
    ctx: typer.Context,
    job: Annotated[str, typer.Argument(metavar="JOB", help="The map job's id.", show_default=False)],
    *,
    state: Annotated[
        list[str] | None, typer.Option(help="Only waiting, succeeded or failed ones; may be given again.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 100,
    retry: Annotated[bool, typer.Option("--retry", help="Have all that failed tried again.")] = False,
) -> None:
    """List the items of a map job, each with what has become of it."""
    output: Output = ctx.obj
    with connect() as client:
        if retry:
            client.retry_items(job)
            output.note("those that failed are tried again")
            return
        found = list(client.items(job, states=state or (), limit=limit))
    if output.json:
        output.document({"items": [as_json(one) for one in found]})
    elif found:
        output.out.print(table(found))
    else:
        output.note("there are none")


def table(found: Sequence[mapping.Item]) -> Table:
    """Return one line an item."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("NUMBER", "NAME", "STATE", "TRIES", "NODE", "TOOK", "FILES", "WHY"):
        made.add_column(column, header_style="dim", no_wrap=True)
    for one in found:
        why = harmless(one.error.message).partition("\n")[0] if one.error else ""
        size_of = size(sum(file.size for file in one.files)) if one.files else ""
        made.add_row(
            str(one.number), Text(plain(one.name)), one.state, str(one.tries), Text(plain(one.node or "")),
            between(one.started_at, one.ended_at), size_of, Text(why),
        )  # fmt: skip
    return made


# --- several at a time -----------------------------------------------------------------------------------------------


def _at_once(bar: Progress, what: str, count: int, things: Sequence[A], do: Callable[[A], B]) -> list[B]:
    """Return what *do* makes of each of *things*, in their order, *count* at a time."""
    task = bar.add_task(what, total=len(things))

    def one(thing: A) -> B:
        made = do(thing)
        bar.advance(task)
        return made

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(one, thing) for thing in things]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _bar(output: Output) -> Progress:
    """Return a bar for counts; it shows only on a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        console=output.err, transient=True, disable=output.json or not output.err.is_terminal,
    )  # fmt: skip
