import pytest
from pydantic import Field, SecretStr, field_validator

from shared.settings import ServiceSettings, complaints, read_settings


class Settings(ServiceSettings):
    size_max: int = Field(default=1, ge=1)
    some_key: SecretStr = SecretStr("")

    @field_validator("some_key")
    @classmethod
    def _is_hex(cls, value: SecretStr) -> SecretStr:
        bytes.fromhex(value.get_secret_value())
        return value


def test_a_wrong_setting_is_named_as_the_operator_wrote_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHERRY_SIZE_MAX", "0")
    monkeypatch.setenv("WHERRY_LOG_LEVEL", "loud")
    with pytest.raises(SystemExit) as ended:
        read_settings(Settings)
    text = str(ended.value)
    assert "WHERRY_SIZE_MAX: " in text
    assert "greater than or equal to 1" in text
    assert "WHERRY_LOG_LEVEL: " in text
    assert "pydantic" not in text.lower()


def test_a_secret_that_is_wrong_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHERRY_SOME_KEY", "hunter2")
    with pytest.raises(ValueError, match=r"WHERRY_SOME_KEY|some_key") as refused:
        Settings()
    assert "hunter2" not in str(refused.value)
    assert "hunter2" not in "".join(complaints(refused.value))  # pyright: ignore[reportArgumentType]
    with pytest.raises(SystemExit) as ended:
        read_settings(Settings)
    assert "hunter2" not in str(ended.value)


def test_settings_that_are_right_are_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WHERRY_SIZE_MAX", "7")
    assert read_settings(Settings).size_max == 7
