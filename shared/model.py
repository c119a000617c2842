"""The base of everything that travels: frozen, closed, compared by value."""

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    """A value that cannot be changed and takes no field it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Message(BaseModel):
    """A value that travels between services. Unknown fields are ignored, so that the next version may add some.

    Numbers are finite: JSON has no others, and one that came in could not be passed on.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

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


class Empty(Message):
    """Nothing to say."""


def _clipped(longest: int) -> AfterValidator:
    return AfterValidator(lambda text: text if len(text) <= longest else f"{text[: longest - 1]}…")


#: What somebody else words (a program, an engine, a node) is cut rather than refused: what it comes with matters more.
#: Uncut, the whole job that every event carries could outgrow the broker's largest message.
Sentence = Annotated[str, _clipped(2000)]
Remark = Annotated[str, _clipped(500)]
Name = Annotated[str, _clipped(300)]
#: An amount that fits every number that it becomes on its way (floats, BSON).
Amount = Annotated[int, Field(ge=0, le=2**53)]
