"""The last lease, for the agent after this one. Not synced: what a power cut takes with it, it also ends."""

import json
from pathlib import Path

from services.node_agent.core.lease import Lease
from shared import observe

_log = observe.logger("lease")


class LeaseNote:
    """One small file. Its times are of one start of the machine: a note of an earlier one is none.

    Args:
        path: the file.
        boot_id: names this start of the machine.
    """

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path = path
        self._boot_id = boot_id

    def read(self) -> Lease | None:
        """Return the lease that was noted last since the machine was started."""
        try:
            note = json.loads(self._path.read_text("utf-8"))
            return Lease(note["granted_at"], note["length_s"]) if note["boot_id"] == self._boot_id else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, lease: Lease) -> None:
        """Note *lease*. A full disk is no reason to stop: the agent itself knows it."""
        note = {"boot_id": self._boot_id, "granted_at": lease.granted_at, "length_s": lease.length_s}
        new = self._path.with_suffix(".new")
        try:
            new.write_text(json.dumps(note), "utf-8")
            new.replace(self._path)
        except OSError as error:
            _log.warning("lease_not_noted", error=str(error))
