"""What follows from one try of a delivery: done, again later, or never."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

MINUTE, HOUR = 60.0, 3600.0
#: Pauses in seconds after each failed try. Webhooks: the schedule of Standard Webhooks 1.0, ten tries in 75 h 35 min.
SCHEDULES: Mapping[str, tuple[float, ...]] = {
    "webhook": (5, 5 * MINUTE, 30 * MINUTE, 2 * HOUR, 5 * HOUR, 10 * HOUR, 14 * HOUR, 20 * HOUR, 24 * HOUR),
    "email": (1 * MINUTE, 5 * MINUTE, 15 * MINUTE, 60 * MINUTE, 240 * MINUTE),
}
#: A pause is up to this share longer, so that failed deliveries do not come back in step.
JITTER = 0.2
#: A receiver cannot put us off for longer.
RETRY_AFTER_MAX_S = 24 * HOUR
#: Statuses whose Retry-After counts.
_THROTTLED = frozenset({429, 502, 503, 504})


class Verdict(StrEnum):
    """What one try came to."""

    DELIVERED = "delivered"
    FAILED = "failed"  # may work later
    HOPELESS = "hopeless"  # will not
    POSTPONED = "postponed"  # not tried at all, for a fault of our own: it costs the receiver none of its tries


@dataclass(frozen=True, slots=True)
class Outcome:
    """One try. `detail` is for people; `retry_after_s` is what the receiver asked for."""

    verdict: Verdict
    detail: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to record of a try. `again_in_s` is given when it is to be tried again."""

    state: str  # "delivered", "retrying" or "given_up"
    detail: str
    again_in_s: float | None = None


def judge_webhook(status: int, retry_after_s: float | None) -> Outcome:
    """Return what an answer to a webhook means: only 2xx is success, a redirect is not followed, 410 is final."""
    detail = f"the receiver answered {status}"
    if 200 <= status < 300:
        return Outcome(Verdict.DELIVERED, detail)
    if status == 410:
        return Outcome(Verdict.HOPELESS, f"{detail}: it wants no more of these")
    if 300 <= status < 400:
        detail += ": redirects are not followed"
    return Outcome(Verdict.FAILED, detail, retry_after_s if status in _THROTTLED else None)


def judge_mail(code: int, text: str) -> Outcome:
    """Return what an SMTP reply means: 4xx may pass, 5xx is final."""
    detail = f"the mail server answered {code} {text}".strip()
    if 200 <= code < 300:
        return Outcome(Verdict.DELIVERED, detail)
    return Outcome(Verdict.HOPELESS if 500 <= code < 600 else Verdict.FAILED, detail)


def decide(kind: str, outcome: Outcome, tries: int, seed: float) -> Decision:
    """Return what follows from the outcome of try number *tries* (from 1).

    Args:
        kind: "webhook" or "email".
        outcome: what happened.
        tries: tries so far, this one included.
        seed: 0 to 1, decides how much longer than scheduled the pause is.

    """
    if outcome.verdict is Verdict.DELIVERED:
        return Decision("delivered", outcome.detail)
    if outcome.verdict is Verdict.HOPELESS:
        return Decision("given_up", outcome.detail)
    schedule = SCHEDULES[kind]
    if tries > len(schedule):
        return Decision("given_up", f"{outcome.detail}; given up after {tries} tries")
    pause = schedule[tries - 1] * (1 + JITTER * seed)
    asked = min(outcome.retry_after_s or 0.0, RETRY_AFTER_MAX_S)
    return Decision("retrying", outcome.detail, max(pause, asked))
