"""Showing what a running program has left so far, when somebody asks for it."""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from services.node_agent.adapters.processes import remove_tree
from services.node_agent.adapters.storage import Storage
from services.node_agent.core.attempt import STARTED, Held, Phase
from services.node_agent.core.container import Key
from services.node_agent.ports import Runtime
from services.node_agent.shell.collect import look
from shared import observe
from shared.bus import Bus, Received
from shared.channels import SNAPSHOT_TAKEN
from shared.errors import NotFound, WherryError
from shared.requests.outputs import SnapshotTaken, SnapshotWanted

#: Looks under way at once; others wait. Each reads a disk that jobs use too.
AT_ONCE, WAITING_MOST = 2, 16
#: A look that takes longer is given up.
LOOK_S = 600.0
_PATIENCE_S = 30.0
#: A file may shrink while it is being read, which breaks an engine's archive.
_TRIES = 3
_VISIBLE = STARTED | {Phase.FINISHING}
_log = observe.logger("live")


class Live:
    """Stores what is asked for and says so; whoever asked meanwhile again is answered once.

    Args:
        bus: the control connection.
        storage: takes the files.
        runtimes: by name.
        held: finds an attempt of the journal.
        folder: for lists on their way; emptied now.
        node_id: of this node.
    """

    def __init__(
        self, bus: Bus, storage: Storage, runtimes: Mapping[str, Runtime], held: Callable[[Key], Held | None],
        folder: Path, node_id: str,
    ) -> None:  # fmt: skip
        self._bus = bus
        self._storage = storage
        self._runtimes = runtimes
        self._held = held
        self._folder = folder
        self._node_id = node_id
        self._at_work: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        remove_tree(folder)

    def hear(self, message: Received[SnapshotWanted]) -> None:
        """Begin with a look, unless it is under way, or there are too many: then it is asked for again."""
        wanted = message.data
        if wanted is None or wanted.snapshot_id in self._at_work or len(self._at_work) >= WAITING_MOST:
            return
        task = asyncio.create_task(self._answer(wanted), name=f"look {wanted.snapshot_id}")
        self._at_work[wanted.snapshot_id] = task
        task.add_done_callback(lambda _: self._at_work.pop(wanted.snapshot_id, None))

    async def close(self) -> None:
        """Give up what is under way."""
        tasks = list(self._at_work.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, wanted: SnapshotWanted) -> None:
        try:
            async with self._places, asyncio.timeout(LOOK_S):
                taken = await self._take(wanted)
        except WherryError as error:
            taken = SnapshotTaken(snapshot_id=wanted.snapshot_id, error=error.code, message=error.message)
        except Exception as error:  # noqa: BLE001 - whoever asked is told, and the agent lives on
            _log.exception("look_failed", job_id=wanted.job_id, attempt=wanted.attempt)
            message = f"The node could not look: {error!r}"
            taken = SnapshotTaken(snapshot_id=wanted.snapshot_id, error="unavailable", message=message)
        try:
            await self._bus.ask(SNAPSHOT_TAKEN, taken, kind="node", peer=self._node_id)
        except WherryError as error:  # it is asked for again as long as somebody waits
            _log.warning("look_not_told", job_id=wanted.job_id, attempt=wanted.attempt, error=error.message)

    async def _take(self, wanted: SnapshotWanted) -> SnapshotTaken:
        held = self._held(Key(wanted.job_id, wanted.attempt))
        if held is None or held.phase not in _VISIBLE:
            raise WherryError("not_running", f"Attempt {wanted.attempt} of job {wanted.job_id} does not run any more.")
        if wanted.path is not None and any(part in ("", ".", "..") for part in wanted.path.split("/")):
            raise NotFound(f"{wanted.path!r} is no path among outputs.")
        path = self._folder / f"{wanted.snapshot_id}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = self._storage.of_snapshot(wanted.snapshot_id, patience_s=_PATIENCE_S)
        runtime, below = self._runtimes[held.order.spec.runtime], wanted.path or ""
        try:
            for tries_left in reversed(range(_TRIES)):
                try:
                    manifest = await look(runtime, storage, held.key, held.handle, path, below, wanted.bytes_max)
                    return SnapshotTaken(snapshot_id=wanted.snapshot_id, manifest=manifest)
                except NotFound:
                    raise NotFound(f"Job {wanted.job_id} has left nothing at {below!r} so far.") from None
                except WherryError as error:
                    if not (error.retryable and tries_left):
                        raise
            raise AssertionError  # the last try returns or raises
        finally:
            path.unlink(missing_ok=True)
