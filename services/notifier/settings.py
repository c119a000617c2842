"""What the notifier is told from outside."""

from typing import Literal

from pydantic import Field, SecretStr

from shared.guard import places
from shared.settings import ServiceSettings


class NotifierSettings(ServiceSettings):
    """Read once at start from ``WHERRY_…`` variables."""

    smtp_host: str | None = None  # without one, emails are given up, and say so
    smtp_port: int | None = Field(default=None, ge=1, le=65535)  # default: 25, 587 with starttls, 465 with tls
    smtp_user: str | None = None
    smtp_password: SecretStr | None = None
    smtp_tls: Literal["none", "starttls", "tls"] = "none"
    mail_from: str = "wherry@localhost"
    smtp_timeout_s: float = Field(default=30.0, gt=0, le=300)
    webhook_allow: str = ""  # host:port, separated by commas: may be called whatever their address, by http too
    webhook_timeout_s: float = Field(default=15.0, gt=0, le=30)
    public_url: str = ""  # where users find the gateway; goes into notifications
    notifier_metrics_port: int | None = Field(default=None, ge=1, le=65535)
    deliveries_at_once: int = Field(default=100, ge=1)
    deliveries_per_host: int = Field(default=8, ge=1)

    @property
    def webhook_places(self) -> frozenset[str]:
        """Return the places of `webhook_allow`."""
        return places(self.webhook_allow)
