"""What storage is told from outside."""

from pydantic import Field, SecretStr

from shared.settings import ServiceSettings


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
