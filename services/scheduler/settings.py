"""What the scheduler is told from outside."""

from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from services.scheduler.core.limits import Limits
from shared.settings import ServiceSettings

#: What a lease that nobody holds has in the place of its holder's name.
NOBODY = "free"


class SchedulerSettings(ServiceSettings):
    """Read once at start from ``WHERRY_SCHEDULER_…`` (and the common ``WHERRY_…``) variables."""

    #: A name under which no other scheduler runs at the same time; one that is started again under it leads at once.
    scheduler_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{0,64}$")] = ""
    scheduler_metrics_port: int | None = Field(None, ge=1, le=65535)
    scheduler_leader_lease_s: float = Field(4.0, ge=0.5, le=60)
    scheduler_leader_renew_s: float = Field(1.0, ge=0.1, le=20)
    scheduler_node_lease_s: float = Field(30.0, ge=1, le=3600)
    scheduler_heartbeat_interval_s: float = Field(2.0, ge=0.1, le=60)
    scheduler_heartbeats_per_s_max: float = Field(500.0, ge=1)
    scheduler_mass_loss_patience_s: float = Field(600.0, ge=0)
    scheduler_losses_max: int = Field(5, ge=0, le=100)
    scheduler_backoff_failure_s: float = Field(10.0, ge=0)
    scheduler_backoff_failure_max_s: float = Field(600.0, ge=0)
    scheduler_backoff_loss_s: float = Field(1.0, ge=0)
    scheduler_backoff_loss_max_s: float = Field(60.0, ge=0)
    scheduler_accept_s: float = Field(300.0, ge=1)
    scheduler_clock_slack_s: float = Field(60.0, ge=0)
    scheduler_obey_s: float = Field(300.0, ge=1)
    scheduler_finishing_s: float = Field(3600.0, ge=1)
    scheduler_finishing_grace_s: float = Field(60.0, ge=1)
    scheduler_gpu_free_fraction_min: float = Field(0.5, ge=0, le=1)
    scheduler_share_half_life_s: float = Field(86400.0, ge=1)
    scheduler_reserve_outright_s: float = Field(600.0, ge=0)
    scheduler_gang_port_first: int = Field(20_000, ge=1024, le=65535)
    scheduler_gang_port_last: int = Field(29_999, ge=1024, le=65535)
    #: Of all items of one map job; gateways have the same as WHERRY_ITEMS_BYTES_MAX, and say it before it is too late.
    scheduler_items_bytes_max: int = Field(64 * 1024 * 1024, ge=64 * 1024)
    scheduler_snapshot_interval_s: float = Field(30.0, ge=0.1, le=3600)
    scheduler_snapshot_events: int = Field(20_000, ge=1)

    @field_validator("scheduler_id")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if value == NOBODY:
            raise ValueError(f"{NOBODY!r} is what the lease says when nobody leads: give another name")
        return value

    def limits(self) -> Limits:
        """Return what the core needs of them."""
        return Limits(
            losses_max=self.scheduler_losses_max,
            backoff_failure_s=self.scheduler_backoff_failure_s,
            backoff_failure_max_s=self.scheduler_backoff_failure_max_s,
            backoff_loss_s=self.scheduler_backoff_loss_s,
            backoff_loss_max_s=self.scheduler_backoff_loss_max_s,
            accept_s=self.scheduler_accept_s,
            clock_slack_s=self.scheduler_clock_slack_s,
            obey_s=self.scheduler_obey_s,
            finishing_s=self.scheduler_finishing_s,
            finishing_grace_s=self.scheduler_finishing_grace_s,
            share_half_life_s=self.scheduler_share_half_life_s,
            reserve_outright_s=self.scheduler_reserve_outright_s,
            lease_s=self.scheduler_node_lease_s,
            condition_hold_s=min(30.0, self.scheduler_node_lease_s),
            interval_s=self.scheduler_heartbeat_interval_s,
            heartbeats_per_s_max=self.scheduler_heartbeats_per_s_max,
            mass_loss_patience_s=self.scheduler_mass_loss_patience_s,
            gpu_free_fraction_min=self.scheduler_gpu_free_fraction_min,
            items_bytes_max=self.scheduler_items_bytes_max,
            gang_ports=(self.scheduler_gang_port_first, self.scheduler_gang_port_last),
        )
