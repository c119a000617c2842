"""What owners may hold, and what they hold."""

from services.storage.adapters.fleet_store import FleetStore
from services.storage.adapters.job_store import JobStore
from services.storage.adapters.people_store import PeopleStore
from services.storage.shell.jobs import Jobs
from shared.bus import Bus
from shared.channels import FLEET, QUOTA_SET
from shared.errors import NotFound
from shared.fleet import Quota, QuotaSet
from shared.requests.accounts import UserName
from shared.requests.administration import QuotaView
from shared.states import JOB_TERMINAL, JobState

_ACTIVE = [state.value for state in JobState if state not in JOB_TERMINAL]


class Quotas:
    """Reads quotas as the log has them: the last word stands on the stream before it is projected."""

    def __init__(self, bus: Bus, people: PeopleStore, fleet: FleetStore, jobs: Jobs, job_store: JobStore) -> None:
        self._bus = bus
        self._people = people
        self._fleet = fleet
        self._jobs = jobs
        self._job_store = job_store

    async def get(self, query: UserName) -> QuotaView:
        """Return a user's quota, and how many jobs of theirs wait or run.

        Raises:
            NotFound: there is no such user.
        """
        found = await self._people.user_by_name(query.name)
        if found is None:
            raise NotFound(f"There is no user {query.name!r}.")
        owner_id = found.user.id
        quota = await self._quota(owner_id)
        await self._jobs.catch_up()
        # Workers and replicas that wait for room do so for a job that is counted itself.
        own = [{"gang_id": None}, {"state": {"$ne": JobState.QUEUED.value}}]
        held = await self._job_store.counts({"owner_id": owner_id, "state": {"$in": _ACTIVE}, "$or": own})
        return QuotaView(quota=quota, by_state=held)

    async def _quota(self, owner_id: str) -> Quota | None:
        last = await self._bus.last(FLEET, QUOTA_SET.subject(owner=owner_id))
        if last and isinstance(last.data, QuotaSet):
            return last.data.quota
        return await self._fleet.quota(owner_id)
