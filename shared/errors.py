"""What can go wrong between services: a code for machines, a sentence for people, and whether trying again can help."""

from shared.model import Message


class FieldProblem(Message):
    """What is wrong with one field of a request. `field` is a dotted path."""

    field: str
    message: str


class ErrorBody(Message):
    """An error as it travels in an answer."""

    code: str
    message: str
    retryable: bool = False
    fields: tuple[FieldProblem, ...] = ()


class WherryError(Exception):
    """Something was refused or failed.

    Attributes:
        code: stable and in snake_case; the gateway maps it to a status and a problem document.
        message: a sentence for people: what is wrong and what to do.
        retryable: whether the same call may succeed later.
        fields: the fields at fault, if any.
    """

    def __init__(
        self, code: str, message: str, *, retryable: bool = False, fields: tuple[FieldProblem, ...] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.fields = fields

    def body(self) -> ErrorBody:
        """Return the error as a message."""
        return ErrorBody(code=self.code, message=self.message, retryable=self.retryable, fields=self.fields)

    @classmethod
    def from_body(cls, body: ErrorBody) -> "WherryError":
        """Return the error that *body* carries."""
        return cls(body.code, body.message, retryable=body.retryable, fields=body.fields)


class Unavailable(WherryError):
    """A service did not answer in time; it may be starting, or gone."""

    def __init__(self, message: str) -> None:
        super().__init__("unavailable", message, retryable=True)


class NoAnswer(Unavailable):
    """Nothing came back in time, and what was asked may have arrived: it may be done, or not."""


class Forbidden(WherryError):
    """The bus refused a subject: this service's credential does not cover it."""

    def __init__(self, message: str) -> None:
        super().__init__("bus_forbidden", message)


class Conflict(WherryError):
    """Somebody else wrote first: the expected sequence is no longer the last one."""

    def __init__(self, message: str) -> None:
        super().__init__("conflict", message)


class NotFound(WherryError):
    """There is no such thing, or it is not yours to see."""

    def __init__(self, message: str) -> None:
        super().__init__("not_found", message)
