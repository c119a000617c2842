"""Puts storage together and runs it."""

import asyncio
from datetime import timedelta

from services.storage.adapters.dataset_store import DatasetStore
from services.storage.adapters.fetch import Web
from services.storage.adapters.fetch_store import FetchStore
from services.storage.adapters.fleet_store import FleetStore
from services.storage.adapters.gridfs import GridFs
from services.storage.adapters.item_store import ItemStore
from services.storage.adapters.job_store import JobStore
from services.storage.adapters.model_store import ModelStore
from services.storage.adapters.mongo import Mongo, PyMongoError
from services.storage.adapters.passwords import Passwords
from services.storage.adapters.people_store import PeopleStore
from services.storage.adapters.registry import Registry
from services.storage.adapters.resumable_store import ResumableStore
from services.storage.adapters.retention_store import RetentionStore
from services.storage.adapters.schema import prepare
from services.storage.adapters.snapshot_store import SnapshotStore
from services.storage.adapters.upload_store import UploadStore
from services.storage.routes import artifacts, people
from services.storage.routes.blobs import BlobRoutes, artifact_route
from services.storage.routes.catalogue import catalogue_routes
from services.storage.routes.datasets import dataset_routes
from services.storage.routes.fleet import FleetRoutes
from services.storage.routes.items import item_routes
from services.storage.routes.jobs import JobRoutes
from services.storage.routes.letters import LetterRoutes
from services.storage.routes.resumables import ResumableRoutes
from services.storage.routes.retention import retention_routes
from services.storage.routes.snapshots import snapshot_answers, snapshot_routes
from services.storage.routes.table import QUEUE, serve
from services.storage.settings import StorageSettings
from services.storage.shell.accounts import Accounts
from services.storage.shell.arrivals import Arrivals
from services.storage.shell.artifacts import Artifacts
from services.storage.shell.catalogue import Catalogue
from services.storage.shell.datasets import Datasets
from services.storage.shell.fetches import Fetches
from services.storage.shell.inputs import Inputs
from services.storage.shell.items import Items
from services.storage.shell.jobs import Jobs, ProjectionMark
from services.storage.shell.outputs import Outputs
from services.storage.shell.projection import Heartbeats, Projection
from services.storage.shell.quotas import Quotas
from services.storage.shell.registry_sync import RegistrySync
from services.storage.shell.resumables import Resumables
from services.storage.shell.retention import Retention
from services.storage.shell.snapshots import Snapshots
from services.storage.shell.uploads import Uploads
from shared import observe
from shared.broker_check import check_broker
from shared.bus import Bus
from shared.channels import HEARTBEAT, Service
from shared.clock import utc_now

_PAUSE_S, _PAUSE_MAX_S = 0.2, 2.0

log = observe.logger("storage")


async def run(settings: StorageSettings) -> None:
    """Run until the task is cancelled, or return when a connection to NATS is closed for good.

    Raises:
        NewerSchemaError: a newer storage has written the database.
    """
    mongo = Mongo(settings.mongo_url.get_secret_value(), settings.mongo_database)
    try:
        async with (
            Bus.connect(settings, Service.STORAGE) as bus,
            # Bytes have a connection of their own: questions do not wait behind them.
            Bus.connect(settings, Service.STORAGE, purpose="blobs") as blob_bus,
            Web(settings.fetch_places, settings.fetch_idle_s) as web,
            Registry(settings.registry_places, settings.logins) as registry,
        ):
            await _run_until_closed(Storage(settings, mongo, bus, blob_bus, web, registry), bus, blob_bus)
    finally:
        mongo.close()


async def _run_until_closed(storage: "Storage", *buses: Bus) -> None:
    work = asyncio.create_task(storage.run())
    watches = [asyncio.create_task(bus.closed.wait()) for bus in buses]
    try:
        await asyncio.wait([work, *watches], return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
    finally:
        for task in (work, *watches):
            task.cancel()
        await asyncio.wait([work, *watches])


class Storage:
    """The service: questions answered, streams followed, old things swept up."""

    def __init__(
        self, settings: StorageSettings, mongo: Mongo, bus: Bus, blob_bus: Bus, web: Web, registry: Registry
    ) -> None:
        self._settings = settings
        self._mongo = mongo
        self._bus = bus
        self._blob_bus = blob_bus
        gridfs, upload_store, job_store = GridFs(mongo), UploadStore(mongo), JobStore(mongo)
        fleet_store, people_store = FleetStore(mongo), PeopleStore(mongo)
        mark, output_mark = ProjectionMark(), ProjectionMark()
        jobs = Jobs(bus, job_store, mark)
        self._uploads = Uploads(gridfs, upload_store)
        self._upload_expiry = timedelta(hours=settings.upload_expiry_h)
        self._resumables = Resumables(
            gridfs, ResumableStore(mongo), self._uploads,
            expiry=self._upload_expiry, open_max=settings.uploads_open_max,
        )  # fmt: skip
        self._artifacts = Artifacts(gridfs, upload_store, jobs, job_store)
        outputs = Outputs(gridfs, upload_store)
        self._fetches = Fetches(
            web, FetchStore(mongo), self._uploads,
            bytes_max=settings.fetch_bytes_max, total_s=settings.fetch_timeout_s, at_once=settings.fetches_at_once,
        )  # fmt: skip
        inputs = Inputs(jobs, outputs, upload_store, self._fetches, fleet_store)
        item_store = ItemStore(mongo)
        self._items = Items(jobs, item_store)
        self._blobs = BlobRoutes(self._uploads, gridfs, upload_store, jobs, inputs, self._items)
        self._datasets = Datasets(DatasetStore(mongo), upload_store, gridfs, jobs, outputs)
        model_store = ModelStore(mongo)
        self._catalogue = Catalogue(bus, model_store, registry, upload_store, gridfs, people_store)
        self._registry_sync = RegistrySync(model_store, registry, self._catalogue)
        self._artifacts.needed_by += [
            self._datasets.with_artifact, self._fetches.with_artifact, self._items.with_artifact,
            self._catalogue.with_artifact,
        ]  # fmt: skip
        self._questions = JobRoutes(jobs, job_store, outputs, Arrivals(bus, output_mark))
        quotas = Quotas(bus, people_store, fleet_store, jobs, job_store)
        self._fleet = FleetRoutes(mongo, fleet_store, job_store, quotas)
        self._letters = LetterRoutes(bus, fleet_store)
        self._accounts = Accounts(bus, people_store, fleet_store, Passwords())
        self._snapshots = Snapshots(bus, SnapshotStore(mongo), jobs, outputs)
        retention_store = RetentionStore(mongo)
        self._retention = Retention(bus, retention_store, jobs, self._artifacts, settings.retention)
        self._projection = Projection(bus, job_store, item_store, fleet_store, mark, output_mark)
        self._heartbeats = Heartbeats(fleet_store)

    async def run(self) -> None:
        """Make the database ready, then answer and follow, for ever.

        Raises:
            WherryError: the broker has not what storage needs.
        """
        await check_broker(self._bus, Service.STORAGE)
        await self._prepare()
        await serve(
            self._bus,
            [
                *people.routes(self._accounts),
                *self._questions.routes(),
                *item_routes(self._items),
                *self._fleet.routes(),
                *self._letters.routes(),
                *dataset_routes(self._datasets),
                *catalogue_routes(self._catalogue, self._registry_sync),
                *retention_routes(self._retention),
                *snapshot_routes(self._snapshots),
                artifact_route(self._blobs),
                *artifacts.routes(self._artifacts, self._fetches),
            ],
        )
        of_bytes = [*self._blobs.routes(), *ResumableRoutes(self._resumables).routes()]
        await serve(self._blob_bus, [*of_bytes, *snapshot_answers(self._snapshots)])
        await self._projection.listen_for_replays()
        await self._bus.listen(HEARTBEAT, self._heartbeats.hear, queue=QUEUE)
        log.info("storage_ready")
        try:
            async with asyncio.TaskGroup() as tasks:
                for work in (
                    self._projection.follow_jobs(),
                    self._projection.follow_output(),
                    self._projection.follow_deliveries(),
                    self._projection.follow_fleet(),
                    self._projection.follow_letters(),
                    self._heartbeats.write(),
                    self._catalogue.tell_experts(),
                    self._sweep(),
                    self._retention.repeat(timedelta(hours=self._settings.retention_interval_h)),
                ):
                    tasks.create_task(work)
        finally:
            await self._fetches.stop()
            await self._registry_sync.stop()

    async def _prepare(self) -> None:
        pause_s = _PAUSE_S
        while True:
            try:
                await prepare(self._mongo)
                await self._ensure_admin()
            except PyMongoError as error:
                log.warning("mongo_awaited", error=str(error))
            else:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _ensure_admin(self) -> None:
        password = self._settings.admin_password
        if password is not None:
            await self._accounts.ensure_admin(
                self._settings.admin_user, password.get_secret_value(), self._settings.admin_email
            )

    async def _sweep(self) -> None:
        while True:
            try:
                swept = await self._resumables.sweep(self._upload_expiry)
                swept += await self._uploads.sweep(self._upload_expiry)
                collected = await self._artifacts.collect(utc_now() - self._upload_expiry)
                log.info("uploads_swept", swept=swept, collected=collected)
            except PyMongoError as error:
                log.warning("sweep_failed", error=str(error))
            await asyncio.sleep(self._settings.sweep_interval_h * 3600)
