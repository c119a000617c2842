"""When services were last asked, as the heartbeats of their replicas show it. Kept in memory alone."""

from datetime import datetime

from shared.fleet import HeldAttempt


class Uses:
    """Services by id, each from when it was first known on: a scheduler that takes over waits once more."""

    def __init__(self) -> None:
        self._used_at: dict[str, datetime] = {}
        self._served: dict[str, dict[str, int]] = {}  # service -> replica -> requests it has answered

    def begin(self, service_id: str, at: datetime) -> None:
        """Watch a service, if it is not watched."""
        self._used_at.setdefault(service_id, at)

    def discard(self, service_id: str) -> None:
        """Watch it no more."""
        self._used_at.pop(service_id, None)
        self._served.pop(service_id, None)

    def replica_ended(self, service_id: str, job_id: str) -> None:
        """Forget what a replica has said."""
        self._served.get(service_id, {}).pop(job_id, None)

    def heard(self, service_id: str, replica: HeldAttempt, at: datetime) -> None:
        """Take in what a replica's node says of it: it was asked since, if it answers or has answered more."""
        served = self._served.setdefault(service_id, {})
        before = served.get(replica.job_id)
        if replica.in_flight or (before is not None and replica.served != before):
            self._used_at[service_id] = at
        served[replica.job_id] = replica.served

    def at(self, service_id: str) -> datetime | None:
        """Return about when a service was last asked; None for one that is not watched."""
        return self._used_at.get(service_id)
