"""Every operation of the client, written once: what to ask, when to try again, what to make of the answer.

Scripts do nothing themselves; a driver carries out what they yield (see `effects`).
"""

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

from client.wherry import models, outputs, protocol
from client.wherry.effects import (
    Body,
    Close,
    Emit,
    Now,
    Open,
    Pause,
    Read,
    Request,
    Script,
    Series,
    Stream,
    Work,
)
from client.wherry.errors import Corrupt, Unreachable, WaitTimeout, WherryError
from client.wherry.requesting import backoff, call
from client.wherry.source import ProgressCallback, file_body, folder_body, submission_body
from client.wherry.uploads import RESUME_FROM_BYTES, Note, send_file

T = TypeVar("T")
P = TypeVar("P", bound="Page")

PAGE = 200
#: Tries of one file in a row that bring no new byte, after which a download is given up.
STALLED_TRIES = 5


# --- one request ---------------------------------------------------------------------------------------------------


def ask(kind: type[T], request: Request, patience_s: float) -> Script[T]:
    """Send *request* and return its answer as a *kind*."""
    return protocol.parse(kind, (yield from call(request, patience_s)))


def ask_list(kind: type[T], key: str, request: Request, patience_s: float) -> Script[list[T]]:
    """Send *request* and return the list under *key* of its answer."""
    return protocol.listed(kind, key, (yield from call(request, patience_s)))


def done(request: Request, patience_s: float) -> Script[None]:
    """Send *request*; its answer says nothing more than that it was done."""
    yield from call(request, patience_s)


def _opened(request: Request, *, events: bool = False) -> Script[Stream]:
    stream: Stream = yield Open(request, events)
    error = protocol.problem(stream.status, stream.headers, stream.body)
    if error is None and events and "text/event-stream" not in stream.headers.get("content-type", ""):
        error = WherryError("no_stream", "the server does not stream events here", status=stream.status)
    if error:
        yield Close(stream)
        raise error
    return stream


# --- lists, page by page -------------------------------------------------------------------------------------------


class Page(Protocol):
    """Some of a list; the cursor asks for the next."""

    @property
    def cursor(self) -> str | None:
        """Return where the next page begins; None: there is none."""
        ...


Filters: TypeAlias = Mapping[str, str | Sequence[str] | None]


def each(
    kind: type[P], path: str, filters: Filters, items: Callable[[P], Sequence[T]], limit: int | None,
    patience_s: float, size: int = PAGE,
) -> Series[T]:  # fmt: skip
    """Give what the list at *path* has, at most *limit*, with a request for each page of *size*."""
    cursor: str | None = None
    left = limit
    while left is None or left > 0:
        request = protocol.page(path, filters, cursor, size if left is None else min(size, left))
        page = yield from ask(kind, request, patience_s)
        found = items(page)
        for one in found[:left]:
            yield Emit(one)
        left = None if left is None else left - len(found)
        cursor = page.cursor
        if not cursor or not found:
            return


# --- jobs ----------------------------------------------------------------------------------------------------------


def submit(
    spec: Mapping[str, Any],
    source: Path | None,
    key: str,
    progress: ProgressCallback | None,
    patience_s: float,
) -> Script[models.Submitted]:
    """Hand in a job, with the bytes of its source if it has one."""
    body: Body | None = None
    if source is not None and (yield Work(partial(_is_large_zip, source))):
        artifact = yield from put_artifact(source, source.name, progress, patience_s, None)
        spec = {**spec, "source": artifact.artifact_id}
    elif source is not None:
        body = yield Work(partial(submission_body, dict(spec), source, progress))
    return (yield from ask(models.Submitted, protocol.submit(spec, key, body), patience_s))


def jobs(filters: Filters, limit: int | None, patience_s: float) -> Series[models.Job]:
    """Give jobs, newest first."""
    return each(models.JobPage, "/jobs", filters, lambda page: page.jobs, limit, patience_s)


def nodes(patience_s: float) -> Series[models.Node]:
    """Give every machine, by name."""
    return each(models.NodePage, "/nodes", {}, lambda page: page.nodes, None, patience_s)


def users(patience_s: float) -> Series[models.User]:
    """Give every user, by name."""
    return each(models.UserPage, "/users", {}, lambda page: page.users, None, patience_s)


def dead_letters(reader: str | None, limit: int, patience_s: float) -> Series[models.DeadLetter]:
    """Give dead letters, newest first, at most *limit* of them."""
    filters = {"reader": reader}
    return each(models.DeadLetterPage, "/dead-letters", filters, lambda page: page.dead_letters, limit, patience_s)


def wait(job_id: str, timeout_s: float | None, patience_s: float) -> Script[models.Job]:
    """Return the job once it has ended: told by its events, or found by asking where they cannot be had.

    Raises:
        WaitTimeout: it had not ended after *timeout_s* seconds.

    """
    started: float = yield Now()
    pauses = 0
    while True:
        job, streamed = yield from _watched(job_id, started, timeout_s, patience_s)
        if job.is_terminal:
            return job
        pauses = 0 if streamed else pauses + 1
        yield from _time_left(job, started, timeout_s)
        yield Pause(backoff(pauses or 1))


def _watched(
    job_id: str, started: float, timeout_s: float | None, patience_s: float
) -> Script[tuple[models.Job, bool]]:
    """Return the job at the end of one connection to its events, and whether there was one.

    The connection is opened before the job is asked for, so that no end falls between the two.
    """
    stream: Stream | None = None
    now: float = yield Now()
    silence = protocol.STREAM_SILENCE_S if timeout_s is None else min(protocol.STREAM_SILENCE_S, timeout_s)
    try:
        stream = yield from _opened(protocol.watch(job_id, max(0.1, silence - (now - started))), events=True)
    except WherryError as error:
        if not error.retryable and error.code != "no_stream":
            raise
    job = yield from ask(models.Job, protocol.job(job_id), patience_s)
    if stream is None:
        return job, False
    try:
        while not job.is_terminal and (event := (yield Read(stream))) is not None:
            if _tells_end(event.data):
                job = yield from ask(models.Job, protocol.job(job_id), patience_s)
            else:
                yield from _time_left(job, started, timeout_s)
    except Unreachable:
        pass
    yield Close(stream)
    return job, True


def _tells_end(data: str) -> bool:
    try:
        event = json.loads(data)
    except ValueError:
        return False
    return isinstance(event, dict) and protocol.ended(event)


def _time_left(job: models.Job, started: float, timeout_s: float | None) -> Script[None]:
    now: float = yield Now()
    if timeout_s is not None and now - started >= timeout_s:
        raise WaitTimeout(f"job {job.job_id} was {job.state} after {timeout_s:g} s; it goes on")


def events(job_id: str, patience_s: float) -> Script[list[dict[str, Any]]]:
    """Return a job's CloudEvents, oldest first."""
    found: list[dict[str, Any]] = []
    after = 0
    while True:
        page = yield from ask(models.EventPage, protocol.events(job_id, after), patience_s)
        found += page.events
        if not page.events or page.cursor <= after:
            return found
        after = page.cursor


def logs(job_id: str, choice: protocol.LogChoice, patience_s: float) -> Series[str]:
    """Give the lines of a log as it is now."""
    yield from _lines(protocol.logs(job_id, choice), patience_s)


def _lines(request: Request, patience_s: float) -> Series[str]:
    opened = yield from _patiently(lambda: _opened(request), patience_s)
    rest = b""
    while chunk := (yield Read(opened)):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield Emit(line.decode(errors="replace"))
    if rest:
        yield Emit(rest.decode(errors="replace"))


def _patiently(attempt: Callable[[], Script[T]], patience_s: float) -> Script[T]:
    started: float = yield Now()
    tries = 0
    while True:
        try:
            return (yield from attempt())
        except WherryError as error:
            tries += 1
            pause = backoff(tries, error.retry_after_s)
            now: float = yield Now()
            if not error.retryable or now - started + pause > patience_s:
                raise
        yield Pause(pause)


def follow(job_id: str, choice: protocol.LogChoice, patience_s: float) -> Series[models.JobOutput]:
    """Give what a job prints, all or a choice of it, until it ends, over as many connections as that takes.

    Raises:
        Unreachable: the server could not be reached for *patience_s* seconds.

    """
    last_id, tries = "", 0
    lost_at: float | None = None
    while True:
        stream: Stream | None = None
        try:
            stream = yield from _opened(protocol.follow(job_id, choice, last_id), events=True)
            lost_at = None
            while (event := (yield Read(stream))) is not None:
                last_id, tries = event.id or last_id, 0
                item = protocol.job_output(event.event, event.data)
                if item is not None:
                    yield Emit(item)
                if isinstance(item, models.End):
                    return
            error: WherryError = Unreachable("the server closed the log before the job's end")
        except WherryError as lost:
            if not lost.retryable:
                raise
            error = lost
        if stream is not None:
            yield Close(stream)
        tries += 1
        now: float = yield Now()
        lost_at = now if lost_at is None else lost_at
        if now - lost_at > patience_s:
            raise error
        yield Pause(backoff(tries, error.retry_after_s))


# --- outputs -------------------------------------------------------------------------------------------------------


def entries(job_id: str, patience_s: float) -> Script[list[models.Entry]]:
    """Return what a job left, in order of its paths."""
    return list((yield from listing(job_id, patience_s)).entries)


def listing(
    job_id: str, patience_s: float, *, live: bool = False, path: str | None = None
) -> Script[models.OutputPage]:
    """Return what a job left, in order of its paths; with *live* what it has left so far, all or at *path*."""
    asked = protocol.outputs(job_id, None, "true" if live else None, path if live else None)
    first = page = yield from ask(models.OutputPage, asked, patience_s)
    found = list(first.entries)
    while page.cursor:
        page = yield from ask(models.OutputPage, protocol.outputs(job_id, page.cursor, first.look), patience_s)
        found += page.entries
    return first.model_copy(update={"entries": tuple(found), "cursor": None})


def retention(limit: int, patience_s: float, *, dry_run: bool) -> Script[models.RetentionRun]:
    """Return what retention removed, or would, once it is done."""
    run = yield from ask(models.RetentionRun, protocol.retention(limit, dry_run=dry_run), patience_s)
    while run.ended_at is None:
        yield Pause(1.0)
        run = yield from ask(models.RetentionRun, protocol.retention_run(run.run_id), patience_s)
    return run


def download(
    job_id: str, folder: Path, path: str | None, progress: ProgressCallback | None, patience_s: float,
    *, live: bool = False,
) -> Script[list[Path]]:  # fmt: skip
    """Bring what a job left to *folder*, bit for bit, with its modes, times and empty folders.

    What an earlier, broken download left is used. Returns the files that are there now.

    Raises:
        WherryError: the job goes on and has left nothing yet (``not_ended``), there is nothing at *path*
            (``not_found``), or a path leads out of the folder (``unsafe_path``).
        Corrupt: a file arrived damaged twice.

    """
    page = yield from listing(job_id, patience_s, live=live, path=path)
    found = outputs.select(list(page.entries), path)
    if not page.entries and not live:
        job = yield from ask(models.Job, protocol.job(job_id), patience_s)
        if not job.is_terminal:
            raise WherryError("not_ended", f"job {job_id} is {job.state}: what it leaves is there when it has ended")
    if path is not None and not found:
        raise WherryError("not_found", f"job {job_id} has no output {path!r}")
    targets = [(entry, outputs.safe_target(folder, entry.path)) for entry in found]
    meter = _Meter(sum(entry.size for entry in found), progress)
    yield Work(partial(folder.mkdir, parents=True, exist_ok=True))
    files: list[Path] = []
    for entry, target in targets:
        if entry.kind == "dir":
            yield Work(partial(target.mkdir, parents=True, exist_ok=True))
        else:
            wanted = partial(protocol.output, job_id, entry.path, look=page.look)
            yield from _file(wanted, entry, target, meter, patience_s)
            files.append(target)
    for entry, target in reversed(targets):  # folders last and deepest first: a file's arrival changes its folder
        if entry.kind == "dir":
            yield Work(partial(outputs.restore, target, entry))
    return files


#: Asks for a file from a byte on.
Wanted = Callable[[int], Request]


class _Meter:
    """Counts bytes over many files."""

    def __init__(self, total: int, callback: ProgressCallback | None) -> None:
        self._total, self._done, self._callback = total, 0, callback

    def add(self, count: int) -> None:
        self._done += count
        if self._callback:
            self._callback(self._done, self._total)


def _file(wanted: Wanted, entry: models.Entry, target: Path, meter: _Meter, patience_s: float) -> Script[None]:
    if (yield Work(partial(outputs.already_there, target, entry))):
        meter.add(entry.size)
        yield Work(partial(outputs.restore, target, entry))
        return
    for last_try in (False, True):
        yield from _gather(wanted, entry, target, meter, patience_s)
        try:
            yield Work(partial(outputs.finish_file, target, entry))
        except Corrupt:
            if last_try:
                raise
            meter.add(-entry.size)
        else:
            return


def _gather(wanted: Wanted, entry: models.Entry, target: Path, meter: _Meter, patience_s: float) -> Script[None]:
    """Bring the bytes of a file that are not there yet, going on where a connection broke."""
    have: int = yield Work(partial(outputs.start_part, target, entry))
    meter.add(have)
    part, stalled = outputs.part_file(target), 0
    while have < entry.size:
        before = have
        try:
            stream = yield from _patiently(partial(_opened, wanted(have)), patience_s)
            if have and stream.status != 206:
                meter.add(-have)
                have = before = 0
            while chunk := (yield Read(stream)):
                yield Work(partial(outputs.append, part, chunk, have))
                have += len(chunk)
                meter.add(len(chunk))
            yield Close(stream)
        except Unreachable:
            pass
        stalled = 0 if have > before else stalled + 1
        if stalled >= STALLED_TRIES:
            raise Unreachable(f"{entry.path} stopped at {have} of {entry.size} bytes; get it again to go on from there")
        if have < entry.size:
            yield Pause(backoff(stalled + 1))


# --- artifacts -----------------------------------------------------------------------------------------------------


def put_artifact(
    path: Path, name: str, progress: ProgressCallback | None, patience_s: float, note: Note | None
) -> Script[models.Artifact]:
    """Store the file at *path*; a large one goes on where it was when a connection breaks. A folder becomes a zip."""
    if (yield Work(path.is_dir)):
        zipped: Body = yield Work(partial(folder_body, path, progress))
        name = (name if name.strip(".") else path.resolve().name) or "data"
        name = name if name.endswith(".zip") else f"{name}.zip"
        return (yield from ask(models.Artifact, protocol.put_artifact(zipped, name), patience_s))
    if (yield Work(partial(_is_large, path))):
        return (yield from send_file(path, name, progress, patience_s, note or Note(None, path, "")))
    body: Body = yield Work(partial(file_body, path, "application/octet-stream", progress))
    return (yield from ask(models.Artifact, protocol.put_artifact(body, name), patience_s))


def _is_large_zip(path: Path) -> bool:
    return _is_large(path) and zipfile.is_zipfile(path)


def _is_large(path: Path) -> bool:
    return path.is_file() and path.stat().st_size >= RESUME_FROM_BYTES


def artifacts(limit: int, patience_s: float) -> Series[models.ArtifactEntry]:
    """Give the newest artifacts, at most *limit* of them."""
    return each(models.ArtifactPage, "/artifacts", {}, lambda page: page.artifacts, limit, patience_s)


def get_artifact(artifact_id: str, target: Path, progress: ProgressCallback | None, patience_s: float) -> Script[str]:
    """Bring an artifact to the file *target* and return the SHA-256 of what arrived, in hex."""
    return (yield from get_file(partial(protocol.artifact, artifact_id), target, progress, patience_s))


def get_file(
    request: Callable[[int], Request], target: Path, progress: ProgressCallback | None, patience_s: float
) -> Script[str]:
    """Bring what *request* asks for from some byte on to the file *target*, and return its SHA-256 in hex."""
    yield Work(partial(target.parent.mkdir, parents=True, exist_ok=True))
    part, have, stalled = outputs.part_file(target), 0, 0
    digest = hashlib.sha256()
    total: int | None = None
    while total is None or have < total:
        before = have
        try:
            stream = yield from _patiently(partial(_opened, request(have)), patience_s)
            if have and stream.status != 206:
                have, digest = 0, hashlib.sha256()
            length = stream.headers.get("content-length")
            total = have + int(length) if length else None
            while chunk := (yield Read(stream)):
                yield Work(partial(outputs.append, part, chunk, have))
                digest.update(chunk)
                have += len(chunk)
                if progress:
                    progress(have, total or have)
            yield Close(stream)
            total = have if total is None else total
        except Unreachable:
            stalled = 0 if have > before else stalled + 1
            if stalled >= STALLED_TRIES:
                raise
            yield Pause(backoff(stalled + 1))
    yield Work(partial(_keep, part, target))
    return digest.hexdigest()


def check_digest(target: Path, sha256: str, wanted: str) -> None:
    """Return if what arrived is what was meant; else nothing is left of it.

    Raises:
        Corrupt: it is not.

    """
    if sha256 != wanted:
        target.unlink(missing_ok=True)
        raise Corrupt(f"{target} arrived damaged: get it again")


def _keep(part: Path, target: Path) -> None:
    if not part.exists():
        part.touch()
    part.replace(target)
