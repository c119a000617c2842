"""Rules about users: what a name, a password and a role may be, how long a session lives, how often one may guess."""

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.errors import FieldProblem, WherryError

IDLE_LIMIT, LIFE_LIMIT = timedelta(hours=12), timedelta(days=7)
PASSWORD_LEAST, PASSWORD_MOST = 8, 1024
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$")
_EMAIL = re.compile(r"^[^\s@<>\"',;:\x00-\x1f]+@[^\s@<>\"',;:\x00-\x1f]+$")
_EMAIL_MOST = 254

#: Wrong passwords that are free, and how the wait grows after them.
FREE_TRIES, TRY_WINDOW_S, WAIT_MOST_S = 5, 60.0, 900.0


def name_key(name: str) -> str:
    """Return what two spellings of one name have in common."""
    return unicodedata.normalize("NFKC", name).casefold()


def check_user(*, name: str | None = None, password: str | None = None, email: str | None = None) -> None:
    """Return if everything given is allowed; an empty email means none.

    Raises:
        WherryError: ``invalid``, with the fields at fault.
    """
    problems: list[FieldProblem] = []
    if name is not None and not _NAME.fullmatch(name):
        problems.append(
            FieldProblem(field="name", message="1 to 64 letters, digits and ._@+-, a letter or digit first")
        )
    if password is not None and not PASSWORD_LEAST <= len(password) <= PASSWORD_MOST:
        problems.append(FieldProblem(field="password", message=f"{PASSWORD_LEAST} to {PASSWORD_MOST} characters"))
    if email and (len(email) > _EMAIL_MOST or not _EMAIL.fullmatch(email)):
        problems.append(FieldProblem(field="email", message="no email address"))
    if problems:
        raise WherryError("invalid", "This user cannot be.", fields=tuple(problems))


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """When a session was begun and last used."""

    begun_at: datetime
    used_at: datetime

    @property
    def expires_at(self) -> datetime:
        """The moment from which it is dead if it is not used before."""
        return min(self.used_at + IDLE_LIMIT, self.begun_at + LIFE_LIMIT)

    def is_alive(self, now: datetime) -> bool:
        """Return whether it may still be used."""
        return now < self.expires_at


@dataclass(frozen=True, slots=True)
class Tries:
    """Guesses at one account from one place. Times are seconds of a clock that never jumps."""

    count: int = 0
    last: float = 0.0

    @property
    def free_at(self) -> float:
        """When the next guess is allowed: at once at first, then after a minute, two, four, and so on."""
        if self.count < FREE_TRIES:
            return self.last
        # Beyond six doublings the wait is at its most anyway.
        return self.last + min(TRY_WINDOW_S * 2 ** min(self.count - FREE_TRIES, 6), WAIT_MOST_S)

    def begin(self, now: float) -> "Tries":
        """Return the tries with one more. It counts before its outcome is known: many at once are no way around.

        Raises:
            WherryError: ``throttled``: it is too early.
        """
        if self.count == 0 or now - self.last > TRY_WINDOW_S + (self.free_at - self.last):
            return Tries(1, now)
        if now < self.free_at:
            wait_s = round(self.free_at - now) + 1
            raise WherryError("throttled", f"Too many wrong passwords: try again in {wait_s} s.", retryable=True)
        return Tries(self.count + 1, now)
