"""What storage is told from outside."""

from datetime import timedelta

from pydantic import Field, SecretStr, TypeAdapter

from services.storage.core.retention import Policy
from shared.guard import places
from shared.settings import ServiceSettings

_LOGINS = TypeAdapter(dict[str, str])


class StorageSettings(ServiceSettings):
    """Read once at start from ``WHERRY_…`` variables."""

    mongo_url: SecretStr = SecretStr("mongodb://127.0.0.1:27017/?directConnection=true")  # may hold a password
    mongo_database: str = Field(default="wherry", pattern=r"^[A-Za-z0-9_-]{1,60}$")
    admin_user: str = "admin"
    admin_password: SecretStr | None = None  # the user is made at start if there is none of this name
    admin_email: str | None = None
    storage_metrics_port: int | None = Field(default=None, ge=1, le=65535)
    upload_expiry_h: float = Field(default=24.0, gt=0)  # uploads that nobody goes on with are dropped after these hours
    uploads_open_max: int = Field(default=100, gt=0)  # uploads that resume which one user has begun and not ended
    sweep_interval_h: float = Field(default=1.0, gt=0)
    # How long what nobody needs is kept. Jobs stay at least as long as the log has events of them (30 days).
    retention_artifacts_days: float = Field(default=30.0, ge=0)  # uploads that no job and no dataset has
    retention_jobs_days: float = Field(default=90.0, ge=0)  # ended jobs with all that hangs on them
    retention_jobs_per_owner: int | None = Field(default=None, ge=0)  # ended ones, the newest; default: no limit
    retention_logs_days: float = Field(default=30.0, ge=0)  # single lines of ended jobs; the files stay with outputs
    retention_live_h: float = Field(default=1.0, ge=0)  # what was looked at of a running job
    retention_grace_s: float = Field(default=900.0, ge=0)  # hidden for so long before it is removed
    retention_settle_s: float = Field(default=3600.0, ge=300)  # age of bytes before they can count as nobody's
    retention_interval_h: float = Field(default=24.0, gt=0)  # between two runs
    #: host:port, separated by commas: inputs may come from there whatever their address, by http too.
    fetch_allow: str = ""
    #: host:port, separated by commas: registries that are asked by http, whatever their address.
    registries: str = ""
    registry_logins: SecretStr = SecretStr("{}")  # JSON: "user:password" by host:port
    fetch_bytes_max: int = Field(default=64 * 1024**3, gt=0)  # of one file from the web
    fetch_timeout_s: float = Field(default=6 * 3600.0, gt=0)  # for the whole of one
    fetch_idle_s: float = Field(default=30.0, gt=0)  # the longest silence of a server
    fetches_at_once: int = Field(default=8, gt=0)

    @property
    def fetch_places(self) -> frozenset[str]:
        """Return the places of `fetch_allow`."""
        return places(self.fetch_allow)

    @property
    def registry_places(self) -> frozenset[str]:
        """Return the places of `registries`."""
        return places(self.registries)

    @property
    def logins(self) -> dict[str, str]:
        """Return the logins of `registry_logins`."""
        return _LOGINS.validate_json(self.registry_logins.get_secret_value())

    @property
    def retention(self) -> Policy:
        """Return how long what nobody needs is kept."""
        return Policy(
            artifacts=timedelta(days=self.retention_artifacts_days),
            jobs=timedelta(days=self.retention_jobs_days),
            jobs_per_owner=self.retention_jobs_per_owner,
            logs=timedelta(days=self.retention_logs_days),
            live=timedelta(hours=self.retention_live_h),
            grace=timedelta(seconds=self.retention_grace_s),
            settle=timedelta(seconds=self.retention_settle_s),
        )
