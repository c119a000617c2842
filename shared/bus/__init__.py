"""The one door to NATS: connection, durable publishes, expected sequences, atomic batches, requests, consumers."""

from shared.bus.bus import Bus
from shared.bus.connection import Handle
from shared.wire import Raw, Received, Record, Stored

__all__ = ["EXIT_RESTART_ME", "Bus", "Handle", "Raw", "Received", "Record", "Stored", "job_filter"]

EXIT_RESTART_ME = 75


def job_filter(job_id: str) -> str:
    """Return the filter under which a job's events are compared and set: ``wherry.job.*.<job_id>.>``."""
    return f"wherry.job.*.{job_id}.>"
