"""What a running job has left so far: a look is taken by its node, and shown as it was then."""

import re

from services.gateway.core.problems import invalid
from services.gateway.shell.gateway import Gateway
from shared.channels import SNAPSHOT_ASK, SNAPSHOT_GET
from shared.clock import monotonic
from shared.errors import FieldProblem, Unavailable, WherryError
from shared.ids import new_id
from shared.job import BlobRef, Job
from shared.requests.outputs import SnapshotAsk, SnapshotPage, SnapshotQuery

PARTIAL_HEADER, LOOK_HEADER = "Wherry-Partial", "Wherry-Look"
_LOOK = re.compile(r"^l[a-z2-7]{25}\Z")


async def look(
    gateway: Gateway, job: Job, live: str, *, path: str | None = None, cursor: str | None = None, limit: int = 1000
) -> tuple[str, SnapshotPage]:
    """Return a page of a look at everything, or at *path*: a new one where *live* is ``true``, else that of the id.

    Raises:
        WherryError: ``not_running``, ``not_found``, ``busy``; ``unavailable`` if the node does not answer in time.
    """
    look_id = await _begun(gateway, job, live, (path or "").strip("/") or None)
    return look_id, await _taken(gateway, SnapshotQuery(snapshot_id=look_id, job_id=job.id, cursor=cursor, limit=limit))


async def one(gateway: Gateway, job: Job, live: str, path: str) -> tuple[str, BlobRef]:
    """Return the file at *path* as it was seen by a new look at it alone, or by that of the id *live*.

    Raises:
        WherryError: as `look`.
    """
    look_id = await _begun(gateway, job, live, path)
    found = await _taken(gateway, SnapshotQuery(snapshot_id=look_id, job_id=job.id, path=path))
    blob = found.page.entries[0].blob if found.page.entries else None
    if blob is None:
        raise WherryError("not_found", f"{path!r} is a folder.")
    return look_id, blob


async def _begun(gateway: Gateway, job: Job, live: str, path: str | None) -> str:
    if live != "true":
        if not _LOOK.match(live):
            message = "Give true, or the id of a look, which its answer has as `look`"
            raise invalid([FieldProblem(field="live", message=message)])
        return live
    ask = SnapshotAsk(snapshot_id=new_id("l"), job_id=job.id, path=path, bytes_max=gateway.settings.live_bytes_max)
    await gateway.ask(SNAPSHOT_ASK, ask)
    return ask.snapshot_id


async def _taken(gateway: Gateway, query: SnapshotQuery) -> SnapshotPage:
    give_up_at = monotonic() + gateway.settings.live_timeout_s
    while True:
        found = await gateway.ask(SNAPSHOT_GET, query)  # waits a moment by itself
        if found.taken_at is not None:
            return found
        if monotonic() > give_up_at:
            raise Unavailable(f"The node has not answered yet: ask for the look {query.snapshot_id} again.")
