"""What inputs the node keeps, so that an agent that starts anew knows which of them are whole. SQLite."""

import sqlite3
from pathlib import Path

from services.node_agent.core.shelf import Kept

_SCHEMA = """
CREATE TABLE IF NOT EXISTS inputs (
    runtime TEXT, key TEXT, volume TEXT NOT NULL, is_file INTEGER NOT NULL, bytes INTEGER NOT NULL,
    used_at REAL NOT NULL, boot_id TEXT NOT NULL, filled_at REAL NOT NULL, PRIMARY KEY (runtime, key)
);
"""
#: Seconds after which what was written is on the disk, also where the power fails: Linux waits half a minute.
_SETTLED_S = 120.0


class InputsBook:
    """One small file. What it forgets in a power failure is brought once more.

    Args:
        path: the file.
        boot_id: of now. What was filled just before a machine went down may be there in name only, and is forgotten.
    """

    def __init__(self, path: Path, boot_id: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._boot_id = boot_id
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        self._database.executescript(_SCHEMA)
        self._database.execute("DELETE FROM inputs WHERE boot_id NOT IN ('', ?)", (boot_id,))

    def load(self) -> list[Kept]:
        """Return all that is whole."""
        rows = self._database.execute("SELECT runtime, key, volume, is_file, bytes, used_at FROM inputs")
        return [Kept(runtime, key, volume, bool(is_file), size, at) for runtime, key, volume, is_file, size, at in rows]

    def add(self, kept: Kept) -> None:
        """Note that an input is whole."""
        row = (kept.runtime, kept.key, kept.volume, kept.is_file, kept.bytes, kept.used_at, self._boot_id, kept.used_at)
        self._database.execute("INSERT OR REPLACE INTO inputs VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def use(self, kept: Kept) -> None:
        """Note when it was used last."""
        self._database.execute(
            "UPDATE inputs SET used_at = ? WHERE runtime = ? AND key = ?", (kept.used_at, kept.runtime, kept.key)
        )

    def remove(self, kept: Kept) -> None:
        """Note that it is not there, or is about to go."""
        self._database.execute("DELETE FROM inputs WHERE runtime = ? AND key = ?", (kept.runtime, kept.key))

    def settle(self, now: float) -> None:
        """Note that what was filled a while before *now* (seconds since 1970) has reached the disk."""
        self._database.execute("UPDATE inputs SET boot_id = '' WHERE filled_at < ?", (now - _SETTLED_S,))

    def close(self) -> None:
        """Close the file."""
        self._database.close()
