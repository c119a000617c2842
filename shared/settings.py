"""Settings that every service has. Each service's own settings.py adds its own; nothing else reads the environment."""

from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class ServiceSettings(BaseSettings):
    """Read once at start from ``WHERRY_…`` variables. Every number has its unit in its name."""

    model_config = SettingsConfigDict(env_prefix="WHERRY_", frozen=True, extra="ignore")

    nats_url: str = "nats://127.0.0.1:4222"  # several, separated by commas, for a cluster
    nats_user: str = ""
    nats_password: SecretStr = SecretStr("")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    request_timeout_s: float = Field(default=10.0, gt=0, le=120)
