"""Files that go up by tus: what the server has of one is asked for after every break, and only the rest is sent."""

import base64
import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from client.wherry import models, protocol
from client.wherry.effects import Body, Now, Pause, Response, Script, Send, Work
from client.wherry.errors import Corrupt, SourceError, Unreachable, WherryError
from client.wherry.requesting import backoff, call
from client.wherry.source import CHUNK_BYTES, ProgressCallback

#: Smaller files go in one request: to send them again costs less than to ask.
RESUME_FROM_BYTES = 8 * 1024 * 1024
_OFFSET, _ARTIFACT, _SHA256 = "upload-offset", "wherry-artifact", "wherry-sha256"
#: The server has forgotten the upload, or never knew it: it is begun anew.
_FORGOTTEN = frozenset({404, 410})
_MISMATCH = 409


class SentFile:
    """A file on its way: its bytes from anywhere on, and the SHA-256 of all of them, each taken in once.

    Raises:
        SourceError: there is no such file.

    """

    def __init__(self, path: Path, progress: ProgressCallback | None) -> None:
        if not path.is_file():
            raise SourceError(f"{path} is not a file")
        self.path = path
        self.size = path.stat().st_size
        self._progress = progress
        self._sha256 = hashlib.sha256()
        self._hashed = 0

    def body(self, offset: int) -> Body:
        """Return the bytes from *offset* on."""
        return Body(lambda: self._bytes(offset, self.size, self._progress), self.size - offset, protocol.TUS_MEDIA_TYPE)

    def sha256(self) -> str:
        """Return the SHA-256 in hex; what was not sent from here is read for it."""
        for _ in self._bytes(self._hashed, self.size, None):
            pass
        return self._sha256.hexdigest()

    def _bytes(self, offset: int, end: int, progress: ProgressCallback | None) -> Iterator[bytes]:
        if self._hashed < offset:  # sent by somebody before
            for _ in self._bytes(self._hashed, offset, None):
                pass
        with self.path.open("rb") as file:
            file.seek(offset)
            while offset < end and (chunk := file.read(min(CHUNK_BYTES, end - offset))):
                if offset <= self._hashed < offset + len(chunk):
                    self._sha256.update(memoryview(chunk)[self._hashed - offset :])
                    self._hashed = offset + len(chunk)
                yield chunk
                offset += len(chunk)
                if progress:
                    progress(offset, self.size)


class Note:
    """Which upload a file belongs to, kept in a folder, so that another run can go on with it.

    Args:
        folder: where; None keeps nothing.
        path: the file. One that was changed since is another one.
        server: whom it goes to.

    """

    def __init__(self, folder: Path | None, path: Path, server: str) -> None:
        self._file: Path | None = None
        if folder is not None:
            facts = path.stat()
            text = json.dumps([server, str(path.resolve()), facts.st_size, facts.st_mtime_ns])
            self._file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"

    def read(self) -> str | None:
        """Return the upload that was noted."""
        try:
            return str(json.loads(self._file.read_bytes())["upload"]) if self._file else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, upload_id: str) -> None:
        """Note the upload."""
        if self._file:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file.write_text(json.dumps({"upload": upload_id}), encoding="utf-8")

    def remove(self) -> None:
        """Forget it."""
        if self._file:
            self._file.unlink(missing_ok=True)


def send_file(
    path: Path, name: str, progress: ProgressCallback | None, patience_s: float, note: Note
) -> Script[models.Artifact]:
    """Store the file at *path* over as many connections as that takes.

    Raises:
        WherryError: the server refused it, or no byte got through for *patience_s* seconds.
        Corrupt: the server has other bytes: the file was changed while it was sent.

    """
    file: SentFile = yield Work(partial(SentFile, path, progress))
    upload_id, answer = yield from _begun(file, name, patience_s, note)
    offset, since, tries = 0, (yield Now()), 0
    while _ARTIFACT not in answer.headers:
        now: float = yield Now()
        reached = int(answer.headers.get(_OFFSET, "0"))
        if reached > offset:
            offset, since, tries = reached, now, 0
        try:
            sent: Response = yield Send(protocol.continue_upload(upload_id, reached, file.body(reached)))
        except Unreachable as lost:
            error: WherryError = lost
        else:
            refusal = protocol.problem(sent.status, sent.headers, sent.body)
            if refusal is None:
                answer = sent
                continue
            error = refusal
        if not error.retryable and error.status != _MISMATCH:
            raise error
        tries += 1
        now = yield Now()
        if now - since > patience_s:
            raise error
        yield Pause(backoff(tries, error.retry_after_s))
        answer = yield from call(protocol.upload(upload_id), patience_s)
    yield Work(note.remove)
    return (yield from _checked(file, answer))


def _begun(file: SentFile, name: str, patience_s: float, note: Note) -> Script[tuple[str, Response]]:
    """Return the upload to go on with, the one of the note or a new one, and how far it has come."""
    noted: str | None = yield Work(note.read)
    if noted is not None:
        try:
            answer = yield from call(protocol.upload(noted), patience_s)
        except WherryError as error:
            if error.status not in _FORGOTTEN:
                raise
        else:
            if answer.headers.get("upload-length") == str(file.size):
                return noted, answer
    metadata = f"filename {base64.b64encode(name.encode()).decode()}" if name else ""
    answer = yield from call(protocol.create_upload(file.size, metadata), patience_s)
    upload_id = answer.headers.get("location", "").rsplit("/", 1)[-1]
    yield Work(partial(note.write, upload_id))
    return upload_id, answer


def _checked(file: SentFile, answer: Response) -> Script[models.Artifact]:
    sha256: str = yield Work(file.sha256)
    if sha256 != answer.headers.get(_SHA256):
        raise Corrupt(f"{file.path} was changed while it was sent: send it again")
    return models.Artifact(artifact_id=answer.headers[_ARTIFACT], sha256=sha256, size=file.size)
