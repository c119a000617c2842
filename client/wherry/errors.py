"""What can go wrong when talking to a wherry server."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """What is wrong with one field of a request. `field` is a dotted path."""

    field: str
    message: str


class WherryError(Exception):
    """The server refused or failed, or could not be asked.

    Attributes:
        status: the HTTP status; None when there was no answer.
        code: stable and in snake_case, for programs.
        detail: a sentence for people.
        fields: the fields at fault, if any.
        retryable: whether the same call may succeed later.
        retry_after_s: seconds that the server asks to wait, if it said so.

    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        fields: tuple[FieldProblem, ...] = (),
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.status = status
        self.fields = fields
        self.retryable = retryable
        self.retry_after_s = retry_after_s


class Unreachable(WherryError):
    """No answer: nothing listens there, or the connection broke."""

    def __init__(self, detail: str) -> None:
        super().__init__("unreachable", detail, retryable=True)


class WaitTimeout(WherryError):
    """The job had not ended in the time given. It goes on."""

    def __init__(self, detail: str) -> None:
        super().__init__("wait_timeout", detail, retryable=True)


class Corrupt(WherryError):
    """What arrived is not what the server said it would be."""

    def __init__(self, detail: str) -> None:
        super().__init__("corrupt", detail)


class SourceError(WherryError):
    """The folder or zip that should be sent cannot be."""

    def __init__(self, detail: str) -> None:
        super().__init__("bad_source", detail)
