"""What goes up: a folder as a zip that is made while it is sent, or a zip as it is; never whole in memory."""

import json
import secrets
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zipstream

from client.wherry.effects import Body
from client.wherry.errors import SourceError
from client.wherry.ignore import IGNORE_FILE, IgnoreRules

#: Called with the bytes of files sent so far and in all.
ProgressCallback = Callable[[int, int], None]

CHUNK_BYTES = 256 * 1024
#: Packed already: compressing them again only costs time.
_PACKED = frozenset({
    ".7z", ".avi", ".bz2", ".gif", ".gz", ".jpeg", ".jpg", ".lz4", ".mkv", ".mov", ".mp3", ".mp4", ".npz", ".ogg",
    ".parquet", ".png", ".rar", ".tgz", ".webm", ".webp", ".whl", ".xz", ".zip", ".zst",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file or an empty folder of a source. `name` is its path in the zip."""

    path: Path
    name: str
    size: int


def list_folder(folder: Path) -> list[SourceFile]:
    """Return what of *folder* is sent, in order of its names: files, and folders that are empty.

    Links are followed; one that leads back to a folder it lies in is refused.

    Raises:
        SourceError: a link goes round or nowhere, or a file is neither file nor folder.

    """
    rules_file = folder / IGNORE_FILE
    lines = rules_file.read_text(encoding="utf-8").splitlines() if rules_file.is_file() else []
    return list(_walk(folder, "", IgnoreRules(lines), (folder.resolve(),)))


def _walk(folder: Path, prefix: str, rules: IgnoreRules, above: tuple[Path, ...]) -> Iterator[SourceFile]:
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        name = prefix + path.name
        try:
            facts = path.stat()
        except OSError as error:
            raise SourceError(
                f"{path} cannot be read ({error.strerror}): mend it, or name it in {IGNORE_FILE}"
            ) from error
        if rules.ignores(name, folder=stat.S_ISDIR(facts.st_mode)):
            continue
        if stat.S_ISREG(facts.st_mode):
            yield SourceFile(path, name, facts.st_size)
        elif stat.S_ISDIR(facts.st_mode):
            yield from _walk_into(path, name, rules, above)
        else:
            raise SourceError(f"{path} is neither a file nor a folder: name it in {IGNORE_FILE}")


def _walk_into(path: Path, name: str, rules: IgnoreRules, above: tuple[Path, ...]) -> Iterator[SourceFile]:
    real = path.resolve()
    if real in above:
        raise SourceError(f"{path} is a link to a folder that it lies in: name it in {IGNORE_FILE}")
    empty = True
    for file in _walk(path, f"{name}/", rules, (*above, real)):
        empty = False
        yield file
    if empty:
        yield SourceFile(path, name, 0)


def zip_folder(files: list[SourceFile], progress: ProgressCallback | None = None) -> Iterator[bytes]:
    """Yield a zip of *files* with their modes and times, reading each only when its turn comes."""
    archive = zipstream.ZipStream(compress_type=zipfile.ZIP_DEFLATED)
    total, done = sum(file.size for file in files), 0
    for file in files:
        packed = file.path.suffix.lower() in _PACKED
        method, level = (zipfile.ZIP_STORED, None) if packed else (zipfile.ZIP_DEFLATED, 1)
        archive.add_path(str(file.path), file.name, recurse=False, compress_type=method, compress_level=level)
        sent = 0
        for chunk in archive.file():
            sent += len(chunk)
            yield chunk
            if progress:
                progress(done + min(sent, file.size), total)
        done += file.size
    yield from archive.footer()
    if progress:
        progress(total, total)


def read_file(path: Path, progress: ProgressCallback | None = None) -> Iterator[bytes]:
    """Yield the bytes of the file at *path*."""
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
            done += len(chunk)
            if progress:
                progress(done, total)


def file_body(path: Path, media_type: str, progress: ProgressCallback | None = None) -> Body:
    """Return a body that is the file at *path*.

    Raises:
        SourceError: there is no such file.

    """
    if not path.is_file():
        raise SourceError(f"{path} is not a file")
    return Body(lambda: read_file(path, progress), path.stat().st_size, media_type)


def folder_body(folder: Path, progress: ProgressCallback | None = None) -> Body:
    """Return a body that is a zip of the folder, made while it is sent.

    Raises:
        SourceError: there is nothing in it, or something in it cannot be sent.

    """
    files = list_folder(folder)
    if not files:
        raise SourceError(f"{folder} has no files to send")
    return Body(lambda: regroup(zip_folder(files, progress)), None, "application/zip")


def submission_body(spec: dict[str, Any], source: Path, progress: ProgressCallback | None = None) -> Body:
    """Return a multipart body with the spec and the source, a folder or a zip.

    Raises:
        SourceError: there is no such folder or zip, there is nothing in it, or something in it cannot be sent.

    """
    if source.is_dir():
        files = list_folder(source)
        if not files:
            raise SourceError(f"{source} has no files to send")
        name = f"{source.resolve().name or 'source'}.zip"
        return _with_spec(spec, File("source", name, "application/zip", lambda: zip_folder(files, progress), None))
    if not source.is_file():
        raise SourceError(f"{source} does not exist: give a folder or a zip")
    if not zipfile.is_zipfile(source):
        raise SourceError(f"{source} is neither a folder nor a zip")
    size = source.stat().st_size
    return _with_spec(spec, File("source", source.name, "application/zip", lambda: read_file(source, progress), size))


@dataclass(frozen=True, slots=True)
class File:
    """The file of a form: its field, name and media type, what makes its bytes afresh, and their number if known."""

    field: str
    name: str
    media_type: str
    content: Callable[[], Iterator[bytes]]
    size: int | None


def form_body(fields: Mapping[str, tuple[str, str]], file: File) -> Body:
    """Return a multipart body: fields (media type and text) and then a file, which is read while it is sent."""
    boundary = f"wherry-{secrets.token_hex(16)}"
    named = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\nContent-Type: {kind}\r\n\r\n{text}\r\n'
        for name, (kind, text) in fields.items()
    )
    head = (
        f'{named}--{boundary}\r\nContent-Disposition: form-data; name="{file.field}"; '
        f'filename="{_safe(file.name)}"\r\nContent-Type: {file.media_type}\r\n\r\n'
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    def chunks() -> Iterator[bytes]:
        yield head
        yield from regroup(file.content())
        yield tail

    return Body(
        chunks, None if file.size is None else len(head) + file.size + len(tail),
        f"multipart/form-data; boundary={boundary}",
    )  # fmt: skip


def _with_spec(spec: dict[str, Any], file: File) -> Body:
    return form_body({"spec": ("application/json", json.dumps(spec))}, file)


def _safe(name: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)


def regroup(chunks: Iterator[bytes], size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield the same bytes in pieces of at least *size*, so that tiny ones do not cost a system call each."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        if len(held) >= size:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
