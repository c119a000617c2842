"""What jobs left: manifests are read when somebody asks, and the last few kept."""

from collections import OrderedDict
from datetime import datetime

from services.storage.adapters.gridfs import GridFs
from services.storage.adapters.upload_store import UploadStore
from services.storage.core.access import attempt_ref
from services.storage.core.outputs import Listing, listing, stored_by
from shared.errors import WherryError
from shared.job import BlobRef, Job
from shared.manifest import Manifest

#: Entries of all listings that are kept in memory, and bytes of a manifest that is read at all.
KEPT_ENTRIES_MOST = 20_000
MANIFEST_BYTES_MOST = 64 * 1024 * 1024

EMPTY = Listing((), (), ())


class Outputs:
    """Listings of outputs, by job and manifest."""

    def __init__(self, gridfs: GridFs, store: UploadStore) -> None:
        self._gridfs = gridfs
        self._store = store
        self._kept: OrderedDict[tuple[str, str], Listing] = OrderedDict()

    async def of(self, job: Job) -> Listing:
        """Return what *job* left; nothing while it has not ended.

        Raises:
            WherryError: ``corrupt``: the manifest is missing or not what it should be.
        """
        found = stored_by(job)
        if found is None or job.outputs is None:
            return EMPTY
        job_id, attempt, ended_at = found
        return await self.listed(attempt_ref(job_id, attempt), job.outputs.manifest, ended_at)

    async def listed(self, scope: str, manifest: BlobRef, at: datetime) -> Listing:
        """Return what *manifest* names of what was stored for *scope*; *at* is the logs' time.

        Raises:
            WherryError: ``corrupt``: the manifest is missing or not what it should be.
        """
        key = scope, manifest.sha256
        if key not in self._kept:
            held = await self._store.held(scope)
            if manifest.sha256 not in held:
                raise WherryError("corrupt", "The list of outputs is missing.")
            self._keep(key, listing(await self._read(manifest), held, at.timestamp()))
        self._kept.move_to_end(key)
        return self._kept[key]

    def _keep(self, key: tuple[str, str], listed: Listing) -> None:
        self._kept[key] = listed
        while len(self._kept) > 1 and sum(len(one.entries) for one in self._kept.values()) > KEPT_ENTRIES_MOST:
            self._kept.popitem(last=False)

    async def _read(self, manifest: BlobRef) -> Manifest:
        file = await self._gridfs.find(manifest.sha256)
        if file is None or file.size > MANIFEST_BYTES_MOST:
            raise WherryError("corrupt", "The list of outputs is missing or too long.")
        body = b"".join([data async for _, data in self._gridfs.chunks(file.id)])
        try:
            return Manifest.from_bytes(body)
        except ValueError as error:
            raise WherryError("corrupt", "The list of outputs cannot be read.") from error
