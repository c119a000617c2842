"""Settings that every service has. Each service's own settings.py adds its own; nothing else reads the environment."""

from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "WHERRY_"
S = TypeVar("S", bound="ServiceSettings")


class ServiceSettings(BaseSettings):
    """Read once at start from ``WHERRY_…`` variables. Every number has its unit in its name."""

    # What was given is never shown: it may be a password.
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    nats_url: str = "nats://127.0.0.1:4222"  # several, separated by commas, for a cluster
    nats_user: str = ""
    nats_password: SecretStr = SecretStr("")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    request_timeout_s: float = Field(default=10.0, gt=0, le=120)


def read_settings(kind: type[S], **given: Any) -> S:
    """Return the settings that the environment and *given* say.

    Raises:
        SystemExit: one of them is wrong; the message names its variable.
    """
    try:
        return kind(**given)
    except ValidationError as wrong:
        raise SystemExit("\n".join(["wrong settings:", *complaints(wrong)])) from None


def complaints(wrong: ValidationError) -> list[str]:
    """Return a line for each setting that is wrong, by the name of its variable and without its value."""
    found = wrong.errors(include_url=False, include_input=False, include_context=False)
    return [f"{PREFIX}{'_'.join(str(part) for part in item['loc']).upper()}: {item['msg']}" for item in found]
