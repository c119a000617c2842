"""A running gateway: its connections, what it remembers for a minute, and its limits."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from services.gateway.adapters.inbox import Inbox, listening
from services.gateway.adapters.tokens import Tokens
from services.gateway.adapters.zips import judge_stored
from services.gateway.core import access
from services.gateway.core.access import Action
from services.gateway.settings import GatewaySettings
from services.gateway.shell.fair_places import FairPlaces
from services.gateway.shell.serving import Serving
from services.gateway.shell.waiting import Waiting
from shared import observe
from shared.blobs import BlobClient
from shared.bus import Bus, Received
from shared.channels import ARTIFACT_GET, JOB_GET, PING, QUOTA_GET, TOKEN_REVOKED, VERIFY, Channel, Service
from shared.errors import NotFound, WherryError
from shared.ids import TOKEN, new_id
from shared.model import Empty, Message
from shared.requests.accounts import Principal, TokenQuery, UserName
from shared.requests.artifacts import Artifact, ArtifactQuery
from shared.requests.jobs import JobQuery, JobView
from shared.resumable import ResumableClient
from shared.states import JobState

R = TypeVar("R", bound=Message)
_SOURCES_REMEMBERED = 10_000
_OWNERS_REMEMBERED = 10_000
#: Questions about needed jobs that are under way at once, of all requests together.
_OWNERS_ASKED = 64
_READY_TIMEOUT_S = 3.0
#: Seconds for which a large answer waits for room; its node keeps it for 30.
_ANSWER_WAIT_S = 15.0
_log = observe.logger("gateway")


class Places:
    """How many may do something at once. Others wait a while, then are sent away.

    Args:
        count: at once.
        wait_s: seconds to wait for a place.
        what: for the sentence that sends away.
    """

    def __init__(self, count: int, wait_s: float, what: str) -> None:
        self._free = asyncio.Semaphore(count)
        self._wait_s = wait_s
        self._what = what

    @asynccontextmanager
    async def taken(self) -> AsyncGenerator[None, None]:
        """Hold a place while the block runs.

        Raises:
            WherryError: ``busy``.
        """
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise WherryError("busy", f"Too many {self._what} at once; try again.", retryable=True) from None
        try:
            yield
        finally:
            self._free.release()


class Gateway:
    """What routes work with.

    Attributes:
        stopping: set when open streams should end.
    """

    def __init__(self, settings: GatewaySettings, bus: Bus, blob_bus: Bus, serve_bus: Bus, peer: str) -> None:
        self.settings = settings
        self.bus = bus
        self.blobs = BlobClient(blob_bus, "gateway", peer)
        self.resumables = ResumableClient(blob_bus)
        self.serving = Serving(bus, serve_bus, settings.serve_wait_s, settings.serve_bytes_max)
        wait_s = settings.transfer_wait_s
        self.serve_places = FairPlaces(settings.serve_at_once, wait_s, "requests to services")
        self.serve_bodies = FairPlaces(settings.serve_bodies_bytes, wait_s, "large requests to services")
        self.serve_answers = FairPlaces(settings.serve_bodies_bytes, _ANSWER_WAIT_S, "large answers of services")
        self.deployments: dict[tuple[str, str], str] = {}  # by owner and name, as found last
        self._buses = (bus, blob_bus, serve_bus)
        self.key = bytes.fromhex(settings.gateway_key.get_secret_value())
        self.tokens = Tokens(self._verify, lifetime_s=settings.token_cache_s, size=settings.token_cache_max)
        self.uploads = Places(settings.uploads_max, settings.transfer_wait_s, "uploads")
        self.downloads = Places(settings.downloads_max, settings.transfer_wait_s, "downloads")
        self.streams = Places(settings.streams_max, 0.0, "event streams")
        self.waiting = Waiting(self._waiting_jobs)
        self.stopping = asyncio.Event()
        self._inboxes: set[Inbox] = set()
        self._good_sources: OrderedDict[tuple[str, str], Artifact] = OrderedDict()
        self._job_owners: OrderedDict[str, str] = OrderedDict()
        self._asking_owners = asyncio.Semaphore(_OWNERS_ASKED)

    async def ask(self, channel: Channel[Any, R], message: Message) -> R:
        """Ask storage.

        Raises:
            WherryError: as `shared.bus.Bus.ask`.
        """
        return await self.bus.ask(channel, message)

    async def job(self, principal: Principal, job_id: str, action: Action = Action.SEE) -> JobView:
        """Return a job, not older than the log at this moment.

        Raises:
            NotFound: there is none, or *principal* may not do *action* to it.
        """
        if not TOKEN.match(job_id):
            raise access.missing("such job")
        try:
            view = await self.ask(JOB_GET, JobQuery(job_id=job_id))
        except WherryError as error:
            raise access.missing("such job") if error.code == "not_found" else error from None
        access.require_owned(principal, action, view.job.owner.id, "such job")
        return view

    async def owner_of(self, job_id: str) -> str | None:
        """Return the id of a job's owner, or None if there is no such job. It never changes, so it is remembered."""
        if (known := self._job_owners.get(job_id)) is not None:
            return known
        async with self._asking_owners:
            try:
                view = await self.ask(JOB_GET, JobQuery(job_id=job_id))
            except NotFound:
                return None
        self._job_owners[job_id] = view.job.owner.id
        while len(self._job_owners) > _OWNERS_REMEMBERED:
            self._job_owners.popitem(last=False)
        return view.job.owner.id

    async def artifact(self, principal: Principal, artifact_id: str, action: Action = Action.SEE) -> Artifact:
        """Return an artifact's facts.

        Raises:
            NotFound: there is none, or it is not the caller's.
        """
        try:
            found = await self.ask(ARTIFACT_GET, ArtifactQuery(artifact_id=artifact_id))
        except WherryError as error:
            raise access.missing("such artifact") if error.code == "not_found" else error from None
        access.require_owned(principal, action, found.owner_id, "such artifact")
        return found

    async def source(self, principal: Principal, artifact_id: str) -> Artifact:
        """Return a job's source: an artifact of the caller's that is a zip which may be unpacked. Remembered.

        Raises:
            WherryError: ``not_found`` or ``bad_source``.
        """
        known = self._good_sources.get((principal.user_id, artifact_id))
        if known is not None:
            return known
        found = await self.artifact(principal, artifact_id)
        await judge_stored(self.blobs, found.blob)
        self.remember_source(principal, found)
        return found

    def remember_source(self, principal: Principal, artifact: Artifact) -> None:
        """Keep that *artifact* was found to be a good source of *principal*'s."""
        self._good_sources[principal.user_id, artifact.id] = artifact
        while len(self._good_sources) > _SOURCES_REMEMBERED:
            self._good_sources.popitem(last=False)

    def forget_source(self, artifact_id: str) -> None:
        """Look an artifact up again before it is anybody's source."""
        for key in [key for key in self._good_sources if key[1] == artifact_id]:
            del self._good_sources[key]

    @asynccontextmanager
    async def live(self, *wanted: tuple[Channel[Any, Any], dict[str, str]]) -> AsyncGenerator[Inbox, None]:
        """Give an inbox for what happens from now on."""
        async with listening(self.bus, self.settings.stream_backlog_bytes, *wanted) as inbox:
            self._inboxes.add(inbox)
            try:
                yield inbox
            finally:
                self._inboxes.discard(inbox)

    def stop_streams(self) -> None:
        """Let all event streams end soon."""
        self.stopping.set()
        for inbox in self._inboxes:
            inbox.wake()

    async def until_closed(self) -> None:
        """Return when one of the connections is closed for good."""
        watches = [asyncio.create_task(bus.closed.wait()) for bus in self._buses]
        try:
            await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for watch in watches:
                watch.cancel()

    async def not_ready(self) -> str | None:
        """Return why requests cannot be served now, or None."""
        if not self.bus.is_connected:
            return "There is no connection to NATS."
        try:
            await self.bus.ask(PING, Empty(), timeout_s=_READY_TIMEOUT_S, retry_s=0)
        except WherryError as error:
            return f"Storage does not answer: {error.message}"
        return None

    def forget_token(self, received: Received[Any]) -> None:
        """Take in that a token was revoked."""
        if received.data is not None:
            self.tokens.revoke(received.data)

    async def _verify(self, token: str) -> Principal:
        return await self.ask(VERIFY, TokenQuery(token=token))

    async def _waiting_jobs(self, principal: Principal) -> int:
        held = await self.ask(QUOTA_GET, UserName(name=principal.name))
        return held.by_state.get(JobState.QUEUED.value, 0)


@asynccontextmanager
async def running(settings: GatewaySettings) -> AsyncGenerator[Gateway, None]:
    """Connect, and give the gateway while the block runs.

    Raises:
        Forbidden: the broker refuses the credential.
    """
    peer = settings.gateway_id or new_id("g")
    async with (
        Bus.connect(settings, Service.GATEWAY, peer=peer) as bus,
        Bus.connect(settings, Service.GATEWAY, peer=peer, purpose="blob") as blob_bus,
        Bus.connect(settings, Service.GATEWAY, peer=peer, purpose="serve") as serve_bus,
    ):
        gateway = Gateway(settings, bus, blob_bus, serve_bus, peer)
        revocations = await bus.listen(TOKEN_REVOKED, gateway.forget_token)
        _log.info("gateway_connected", gateway_id=peer)
        try:
            yield gateway
        finally:
            await gateway.serving.close()
            await revocations.stop()
