"""Plain processes, for a machine without Docker. There is no isolation: a program has the rights of the agent."""

import asyncio
import json
import os
import shutil
import signal as signals
import socket
import stat
import sys
import tarfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

from services.node_agent.adapters import process_doors, process_shim, source_zip, use, worker_program
from services.node_agent.adapters.pieces import PieceReader
from services.node_agent.adapters.reader_thread import ReaderThread
from services.node_agent.adapters.storage import pieces_of
from services.node_agent.core import wiring
from services.node_agent.core.container import Key, port_variables
from services.node_agent.core.ending import Outcome
from services.node_agent.core.items import ITEMS
from services.node_agent.core.shelf import CONTENT, FILL_ROOT, Given
from services.node_agent.core.use import Use
from services.node_agent.ports import Access, Chunk, Fetch, Found, Image, Output, Provide, RuntimeFacts, Sink, no_inputs
from shared.clock import monotonic, utc_now
from shared.errors import NotFound, Unavailable, WherryError
from shared.fleet import Order
from shared.requests.blobs import CHUNK_BYTES

_POLL_S = 0.03
_LOCAL = "127.0.0.1"
_DIE_S = 10.0
_TAR_PIECE_BYTES = 256 * 1024
#: Files and folders of one attempt that a look at its disk goes through: what is beyond them is not counted.
_LOOKED_AT_MAX = 1_000_000
#: What programs inherit. Nothing else: the agent's environment has credentials in it.
INHERITED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH")


class ProcessRuntime:
    """Runs attempts as process groups, each under a supervisor that survives the agent.

    Args:
        folder: holds one folder per attempt.
        inherited: variables that every program gets.
    """

    name = "process"

    def __init__(self, folder: Path, inherited: Mapping[str, str]) -> None:
        self._folder = folder
        self._inherited = inherited
        self._inputs = folder.with_name(f"{folder.name}-inputs")
        self.doors = process_doors.ProcessDoors(self._of)
        for one in (folder, self._inputs):
            one.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def describe(self) -> RuntimeFacts:
        """Return that it is there."""
        return RuntimeFacts("processes")

    async def find_image(self, order: Order) -> Image | None:
        """Return nothing in particular: there are no images here."""
        del order
        return Image("", None)

    async def pull_image(self, order: Order, tell: Callable[[float, str], None]) -> Image:
        """Return nothing in particular: there are no images here."""
        del order, tell
        return Image("", None)

    async def images(self) -> tuple[str, ...]:
        """Return nothing: there are no images here."""
        return ()

    async def stage(
        self, order: Order, image: Image, source: Fetch, inputs: Provide = no_inputs, access: Access | None = None
    ) -> str:
        """Unpack the source, give it the inputs, and write down what to run."""
        del image
        folder = self._of(Key(order.job_id, order.attempt))
        await asyncio.to_thread(_unpack, folder, order, await source(), self._inherited, access)
        await asyncio.to_thread(_link_inputs, folder / "inputs", self._inputs, await inputs())
        return folder.name

    async def fill_input(self, volume: str, image: str, pieces: Iterator[bytes]) -> None:
        """Make a folder of a tar. It has its name once it is whole."""
        del image
        await asyncio.to_thread(_untar, self._inputs / f"{volume}.part", pieces)
        (self._inputs / f"{volume}.part" / FILL_ROOT).rename(self._inputs / volume)
        (self._inputs / f"{volume}.part").rmdir()

    async def has_input(self, volume: str) -> bool:
        """Return whether the folder is there."""
        return (self._inputs / volume).is_dir()

    async def inputs(self) -> frozenset[str]:
        """Return every folder of an input."""
        return frozenset(path.name.removesuffix(".part") for path in self._inputs.iterdir())

    async def drop_input(self, volume: str) -> bool:
        """Remove the folder. An attempt that runs has names of its own for the files."""
        for path in (self._inputs / volume, self._inputs / f"{volume}.part"):
            await asyncio.to_thread(remove_tree, path)
        return True

    async def start(self, key: Key, handle: str) -> None:
        """Start the supervisor, which starts the program."""
        del handle
        shim = Path(process_shim.__file__)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", str(shim), str(self._of(key)),
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await process.communicate()
        if process.returncode:
            raise WherryError("runtime_error", f"the supervisor could not be started: {said.decode(errors='replace')}")

    def follow(self, key: Key, handle: str, position: dict[str, Any] | None, sink: Sink) -> ReaderThread:
        """Read the two files that the program writes, until it has ended."""
        del handle
        offsets = dict(position or {"o": 0, "e": 0})
        return ReaderThread(f"log-{key.job_id}", partial(_read_files, self._of(key), offsets, sink))

    async def address(self, key: Key, handle: str, port: int) -> tuple[str, int]:
        """Return the port of this machine that the program was given; *port* may be another's here."""
        del handle, port
        what = _read(self._of(key) / "order.json")
        if what is None:
            raise NotFound("the program is gone")
        return _LOCAL, int(what["env"]["WHERRY_PORT"])

    async def outcome(self, key: Key, handle: str) -> Outcome | None:
        """Return how the program ended.

        Raises:
            NotFound: its supervisor is gone and has left no word.
        """
        del handle
        folder = self._of(key)
        alive = _who(folder) is not None
        if (end := _read(folder / "exit.json")) is not None:  # after `alive`: it may end in between
            return Outcome(int(end["exit_code"]))
        if alive or ((folder / "order.json").exists() and not (folder / "started").exists()):
            return None
        raise NotFound("the program's supervisor is gone")

    async def kill(self, key: Key, handle: str, signal: Literal["SIGTERM", "SIGKILL"]) -> None:
        """Send a signal to the program's process group."""
        del handle
        _kill(self._of(key), signals.Signals[signal])

    def seen(self, key: Key) -> tuple[str, str]:
        """Return folders of this machine."""
        return str(self._of(key) / "workspace"), str(self._of(key) / "inputs")

    async def put(self, key: Key, handle: str, pieces: Iterator[bytes]) -> None:
        """Unpack a tar in the workspace."""
        del handle
        await asyncio.to_thread(_unpack_into, self._of(key) / "workspace", pieces)

    async def tell(self, key: Key, handle: str, lines: bytes) -> None:
        """Write to the pipe that the supervisor holds open."""
        del handle
        await asyncio.to_thread(_write_pipe, self._of(key) / process_shim.STDIN, lines)

    async def outputs(
        self, key: Key, handle: str, below: str = "", *, of: Literal["outputs", "items"] = "outputs"
    ) -> AsyncIterator[Output]:
        """Give what is in the outputs folder, or what items have left.

        No link is followed, and of a file that grows no more is given than it had. What this agent may not read is of
        kind "other": it does not keep the rest from being kept.
        """
        del handle
        root = self._of(key) / ("outputs" if of == "outputs" else f"workspace/{ITEMS}/out")
        if not root.is_dir():
            raise NotFound("the outputs are gone")
        names: dict[int, str] = {}  # of files that have several, by inode
        for path in _walk(_inside(root, below)):
            if path == root:
                continue
            try:
                name, status = str(path.relative_to(root)), path.lstat()
            except FileNotFoundError:
                continue
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISDIR(status.st_mode) and os.access(path, os.R_OK | os.X_OK):
                yield Output(name, "dir", mode, status.st_mtime)
            elif not stat.S_ISREG(status.st_mode) or not os.access(path, os.R_OK):
                yield Output(name, "other", mode, status.st_mtime)
            elif status.st_nlink > 1 and names.setdefault(status.st_ino, name) != name:
                yield Output(name, "link", mode, status.st_mtime, target=names[status.st_ino])
            else:
                size = status.st_size
                with suppress(FileNotFoundError, PermissionError), os.fdopen(_plainly(path), "rb") as file:
                    if size <= CHUNK_BYTES:
                        body = await asyncio.to_thread(file.read, size)
                        yield Output(name, "file", mode, status.st_mtime, len(body), body=body)
                    else:
                        yield Output(name, "file", mode, status.st_mtime, size, chunks=pieces_of(file, size))

    async def disk_used(self, keys: Collection[Key]) -> Mapping[Key, int]:
        """Return what the programs have written: all in their folders but the inputs, each file once."""
        return {key: await asyncio.to_thread(_written, self._of(key)) for key in keys}

    async def use(self, key: Key, handle: str) -> Use | None:
        """Return what the program and everything that it started uses."""
        del handle
        who = _who(self._of(key))
        return await asyncio.to_thread(use.of_tree, who["group"]) if who else None

    async def clear(self, key: Key) -> None:
        """Kill the program if it runs, and remove its folder."""
        folder = self._of(key)
        give_up_at = monotonic() + _DIE_S
        while _kill(folder, signals.SIGKILL) and monotonic() < give_up_at:  # noqa: ASYNC110 - nobody tells of its end
            await asyncio.sleep(_POLL_S)
        await asyncio.to_thread(remove_tree, folder)

    async def found(self) -> list[Found]:
        """Return every attempt that has a folder."""
        found: list[Found] = []
        for folder in self._folder.iterdir():
            job_id, _, attempt = folder.name.rpartition("-")
            if job_id and attempt.isdigit():
                created = datetime.fromtimestamp(folder.stat().st_ctime, UTC)
                condition = "started" if (folder / "started").exists() else "created"
                found.append(Found(Key(job_id, int(attempt)), created, folder.name, condition))
        return found

    async def close(self) -> None:
        """Do nothing: programs run on."""

    def _of(self, key: Key) -> Path:
        return self._folder / f"{key.job_id}-{key.attempt}"


def remove_tree(folder: Path) -> None:
    """Remove a folder, also where a program took the rights away; a missing one is no error."""
    if not folder.exists():
        return
    for parent, folders, _ in os.walk(folder):
        for name in folders:
            path = Path(parent, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(folder)


def _unpack(
    folder: Path, order: Order, source: Path | None, inherited: Mapping[str, str], access: Access | None = None
) -> None:
    for name in ("workspace", "outputs", "inputs", "tmp", "run"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "run" / "params.json").write_text(json.dumps(order.spec.params), "utf-8")
    if source is not None:
        source_zip.unpack(source_zip.members(source, bytes_max=order.spec.resources.disk), folder / "workspace")
    argv = order.spec.argv()
    if order.map is not None:
        worker_program.write(folder / "run", folder / "workspace")
        argv = worker_program.argv(order, str(folder / "run"), ())
        os.mkfifo(folder / process_shim.STDIN, 0o600)
    found = process_doors.environment(folder / "run", access)
    offered = port_variables(_free_port()) if order.service else {}
    what = {
        "argv": argv,
        "env": {**inherited, **found, **_environment(folder, order), **offered},
        "cwd": str(folder / "workspace"),
    }
    (folder / "order.json").write_text(json.dumps(what), "utf-8")


def _free_port() -> int:
    """Return a port that nobody had a moment ago. A program that finds it taken ends, and is started with another."""
    with socket.socket() as one:
        one.bind((_LOCAL, 0))
        return one.getsockname()[1]


def _unpack_into(folder: Path, pieces: Iterator[bytes]) -> None:
    """Make files and folders of a tar of our own in a program's folder. What is there already is replaced."""
    with tarfile.open(fileobj=cast("Any", PieceReader(pieces)), mode="r|") as tar:
        while (member := tar.next()) is not None:
            path = folder / member.name
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif (content := tar.extractfile(member)) is not None:
                new = path.with_name(f"{path.name[:200]}.new")
                with new.open("wb") as file:
                    shutil.copyfileobj(content, file, _TAR_PIECE_BYTES)
                new.replace(path)


def _write_pipe(path: Path, lines: bytes) -> None:
    """Write to a pipe of which somebody else reads, all or nothing: at most PIPE_BUF bytes.

    Raises:
        NotFound: nobody does.
        Unavailable: it is full.
    """
    try:
        pipe = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        raise NotFound(f"the program takes nothing: {error.strerror}") from error
    try:
        os.write(pipe, lines)
    except BlockingIOError as error:
        raise Unavailable("the program does not read what it is told") from error
    finally:
        os.close(pipe)


def _untar(folder: Path, pieces: Iterator[bytes]) -> None:
    """Make files and folders of a tar of our own, for nobody to write to."""
    remove_tree(folder)
    folder.mkdir()
    with tarfile.open(fileobj=cast("Any", PieceReader(pieces)), mode="r|") as tar:
        while (member := tar.next()) is not None:
            path = folder / member.name
            if member.isdir():
                path.mkdir(exist_ok=True)
            elif (content := tar.extractfile(member)) is not None:
                with path.open("xb") as file:
                    shutil.copyfileobj(content, file, _TAR_PIECE_BYTES)
                path.chmod(member.mode & 0o555)
                os.utime(path, (member.mtime, member.mtime))
            cast("Any", tar).members.clear()  # else it remembers every file


def _link_inputs(folder: Path, kept: Path, inputs: Mapping[str, Given]) -> None:
    """Give the files of inputs further names here; the folders are the attempt's own, and nobody may write to them.

    Root may, whatever the rights are: its programs get copies, or one would change what others read.
    """
    give: Callable[[Path, Path], object] = os.link if os.geteuid() else shutil.copy2
    for name, given in inputs.items():
        if given.is_file:
            give(kept / given.volume / CONTENT, folder / name)
        else:
            shutil.copytree(kept / given.volume, folder / name, copy_function=give)
    for parent, _, _ in os.walk(folder, topdown=False):
        Path(parent).chmod(0o555)


def _environment(folder: Path, order: Order) -> dict[str, str]:
    ours = {
        "WHERRY_WORKSPACE": str(folder / "workspace"),
        "WHERRY_INPUTS": str(folder / "inputs"),
        "WHERRY_OUTPUTS": str(folder / "outputs"),
        "WHERRY_PARAMS": str(folder / "run" / "params.json"),
        "WHERRY_JOB_ID": order.job_id,
        "WHERRY_ATTEMPT": str(order.attempt),
        "WHERRY_CPUS": f"{order.spec.resources.cpus:g}",
        "HOME": str(folder / "workspace"),
        "TMPDIR": str(folder / "tmp"),
        "XDG_CACHE_HOME": str(folder / "tmp"),
        "PYTHONUNBUFFERED": "1",
    }
    peers = wiring.environment(order.wiring) if order.wiring is not None else {}
    return ours | peers | order.spec.env | {"CUDA_VISIBLE_DEVICES": ",".join(order.gpus)}


def _read_files(folder: Path, offsets: dict[str, int], sink: Sink, reader: ReaderThread) -> None:
    names: dict[Literal["o", "e"], str] = {"o": "stdout", "e": "stderr"}
    while not reader.is_closed:
        # Asked before reading: what was written before the end is then read in this round.
        ended = (folder / "exit.json").exists() or _who(folder) is None
        got = False
        for stream, name in names.items():
            for piece in _new_bytes(folder / name, offsets[stream]):
                got = True
                offsets[stream] += len(piece)
                sink(Chunk(stream, utc_now(), piece, dict(offsets)))
                if reader.is_closed:
                    return
        if ended:
            return
        if not got:
            reader.pause(_POLL_S)


def _new_bytes(path: Path, offset: int) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(offset)
        while piece := file.read(64 * 1024):
            yield piece


def _who(folder: Path) -> dict[str, Any] | None:
    """Return who runs, if the supervisor is alive (a process of the same id may be another one by now)."""
    who = _read(folder / "child.json")
    if who is None or who["boot"] != process_shim.boot_id() or process_shim.start_ticks(who["pid"]) != who["ticks"]:
        return None
    return who


def _kill(folder: Path, signal: signals.Signals) -> bool:
    """Signal the program's group; return whether there was anything to signal."""
    who = _read(folder / "child.json")
    if who is None or who["boot"] != process_shim.boot_id():
        return False
    is_program = process_shim.start_ticks(who["group"]) == who["group_ticks"]
    if is_program:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(who["group"], signal)
    return is_program or _who(folder) is not None


def _written(folder: Path) -> int:
    """Return the length of all files below *folder*, inputs aside. What goes away meanwhile does not count."""
    seen: set[tuple[int, int]] = set()  # files of several names
    total, entries, waiting = 0, 0, [str(folder)]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as found:
            for entry in found:
                entries += 1
                if entries > _LOOKED_AT_MAX:
                    return total
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        if entry.path != f"{folder}/inputs":
                            waiting.append(entry.path)
                    elif stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                        if status.st_nlink > 1:
                            seen.add((status.st_dev, status.st_ino))
                        total += status.st_size
    return total


def _inside(root: Path, below: str) -> Path:
    """Return the path *below* a folder, if no link leads there."""
    path = root
    for part in filter(None, below.split("/")):
        path /= part
        if part in (".", "..") or path.is_symlink() or not path.exists():
            raise NotFound(f"nothing is at {below!r}")
    return path


def _plainly(path: Path) -> int:
    """Open a file that was one a moment ago; what has taken its place is not followed, and not waited for."""
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def _walk(path: Path) -> Iterator[Path]:
    yield path
    if path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError, PermissionError):
            for entry in sorted(path.iterdir()):
                yield from _walk(entry)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
