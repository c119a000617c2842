"""What the agent must not forget: attempts, and reports that the log has not acknowledged. SQLite, synced."""

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from services.node_agent.core.attempt import Held
from services.node_agent.core.container import Key
from services.node_agent.core.effects import Drop, Save, SaveEpoch
from services.node_agent.core.items import Begun
from services.node_agent.core.machine import DROPPED_KEPT
from shared.states import AttemptEventName

_SCHEMA = """
CREATE TABLE IF NOT EXISTS attempts (job_id TEXT, attempt INTEGER, body TEXT NOT NULL, PRIMARY KEY (job_id, attempt));
CREATE TABLE IF NOT EXISTS outbox (
    place INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE, job_id TEXT, attempt INTEGER, name TEXT, body BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS dropped (
    place INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT, attempt INTEGER, UNIQUE (job_id, attempt)
);
CREATE TABLE IF NOT EXISTS items (
    job_id TEXT, attempt INTEGER, slot TEXT, body TEXT NOT NULL, PRIMARY KEY (job_id, attempt, slot)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""

_KEEP_REPORT = """
INSERT INTO outbox (id, job_id, attempt, name, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING
"""

_FORGET_ITEM = "DELETE FROM items WHERE job_id = ? AND attempt = ? AND slot = ?"
_KEEP_DROPPED = "INSERT INTO dropped (job_id, attempt) VALUES (?, ?) ON CONFLICT (job_id, attempt) DO NOTHING"
_FORGET_DROPPED = "DELETE FROM dropped WHERE place <= (SELECT max(place) FROM dropped) - ?"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A report on its way: the whole event as bytes, so that every try sends the same."""

    id: str
    key: Key
    name: AttemptEventName
    body: bytes


@dataclass(frozen=True, slots=True)
class KeepItems:
    """What has become of items of a worker; and those that need not be kept any more, by their slots."""

    key: Key
    begun: Sequence[Begun] = ()
    over: Sequence[str] = ()


Write = Save | Drop | SaveEpoch | Outgoing | KeepItems


@dataclass(frozen=True, slots=True)
class Kept:
    """What a journal holds when it is opened."""

    held: list[Held]
    epoch: int
    outbox: list[Outgoing]
    dropped: list[Key]
    items: dict[Key, list[Begun]]


class Journal:
    """One file, one thread. Every `write` is a transaction that is synced before it returns."""

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1, "journal")
        self._database = self._thread.submit(_open, path).result()

    def load(self) -> Kept:
        """Return everything; called once, before the first write."""
        return self._thread.submit(self._load).result()

    async def write(self, writes: Iterable[Write]) -> None:
        """Make *writes* durable, all or none."""
        todo = list(writes)
        if todo:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._write, todo)

    async def sent(self, outgoing: Outgoing) -> None:
        """Forget a report that the log has acknowledged."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._sent, outgoing.id)

    def close(self) -> None:
        """Finish what is under way and close the file."""
        self._thread.submit(self._database.close).result()
        self._thread.shutdown()

    def _load(self) -> Kept:
        database = self._database
        held = [
            Held.model_validate_json(body) for (body,) in database.execute("SELECT body FROM attempts ORDER BY rowid")
        ]
        epoch = database.execute("SELECT value FROM facts WHERE name = 'epoch'").fetchone()
        rows = database.execute("SELECT id, job_id, attempt, name, body FROM outbox ORDER BY place")
        outbox = [
            Outgoing(id_, Key(job, attempt), AttemptEventName(name), body) for id_, job, attempt, name, body in rows
        ]
        dropped = [Key(*row) for row in database.execute("SELECT job_id, attempt FROM dropped ORDER BY place")]
        items: dict[Key, list[Begun]] = {}
        for job, attempt, body in database.execute("SELECT job_id, attempt, body FROM items"):
            items.setdefault(Key(job, attempt), []).append(Begun.model_validate_json(body))
        return Kept(held, int(epoch[0]) if epoch else 0, outbox, dropped, items)

    def _write(self, writes: list[Write]) -> None:
        with self._database as transaction:
            for write in writes:
                match write:
                    case Save(held):
                        row = (*held.key, held.model_dump_json(exclude_defaults=True))
                        transaction.execute("INSERT OR REPLACE INTO attempts VALUES (?, ?, ?)", row)
                    case Drop(key):
                        transaction.execute("DELETE FROM attempts WHERE job_id = ? AND attempt = ?", key)
                        transaction.execute("DELETE FROM outbox WHERE job_id = ? AND attempt = ?", key)
                        transaction.execute("DELETE FROM items WHERE job_id = ? AND attempt = ?", key)
                        transaction.execute(_KEEP_DROPPED, key)
                        transaction.execute(_FORGET_DROPPED, (DROPPED_KEPT,))
                    case SaveEpoch(epoch):
                        transaction.execute("INSERT OR REPLACE INTO facts VALUES ('epoch', ?)", (str(epoch),))
                    case Outgoing():
                        row = (write.id, *write.key, write.name.value, write.body)
                        transaction.execute(_KEEP_REPORT, row)
                    case KeepItems(key, begun, over):
                        rows = [(*key, one.slot, one.model_dump_json(exclude_defaults=True)) for one in begun]
                        transaction.executemany("INSERT OR REPLACE INTO items VALUES (?, ?, ?, ?)", rows)
                        gone = [(*key, slot) for slot in over]
                        transaction.executemany(_FORGET_ITEM, gone)

    def _sent(self, id_: str) -> None:
        with self._database as transaction:
            transaction.execute("DELETE FROM outbox WHERE id = ?", (id_,))


def _open(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    database = sqlite3.connect(path, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    database.executescript(_SCHEMA)
    return database
