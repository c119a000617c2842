"""The base of everything that travels: frozen, closed, compared by value."""

from typing import Self

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A value that cannot be changed and takes no field it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(BaseModel):
    """A value that travels between services. Unknown fields are ignored, so that the next version may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def to_bytes(self) -> bytes:
        """Return the message as UTF-8 JSON, without fields that are at their default."""
        return self.model_dump_json(exclude_defaults=True, by_alias=True).encode()

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Parse UTF-8 JSON.

        Raises:
            pydantic.ValidationError: the body is not this message.
        """
        return cls.model_validate_json(body)
