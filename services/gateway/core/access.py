"""Who may do what: the one place where it is decided, for REST and for event streams alike."""

from enum import StrEnum

from shared.errors import NotFound, WherryError
from shared.requests.accounts import Principal


class Action(StrEnum):
    """What somebody wants to do."""

    SEE = "see"  # a job, its output, an artifact, its events
    CHANGE = "change"  # cancel, run again
    NOTIFY_ANYONE = "notify_anyone"  # send email to an address that is not one's own
    SEE_EVERYTHING = "see_everything"  # lists over all owners; which jobs a node runs
    CHANGE_ANYTHING = "change_anything"  # add to or remove others' datasets
    MANAGE_USERS = "manage_users"
    MANAGE_NODES = "manage_nodes"  # drain, cordon, forget
    MANAGE_QUOTAS = "manage_quotas"  # set anybody's; see others'
    MANAGE_RETENTION = "manage_retention"  # list and remove what is kept no longer, whoever's it is
    MANAGE_MODELS = "manage_models"  # release, describe, measure; ask and answer as an expert
    MANAGE_LETTERS = "manage_letters"  # read dead letters, which may be anybody's, and replay them


_EXPERTS_TOO = frozenset({Action.MANAGE_MODELS})
_OWNERS_TOO = frozenset({Action.SEE, Action.CHANGE})


def may(principal: Principal, action: Action, owner_id: str | None = None) -> bool:
    """Return whether *principal* may do *action* to what belongs to *owner_id*."""
    if principal.role == "admin" or (principal.role == "expert" and action in _EXPERTS_TOO):
        return True
    return action in _OWNERS_TOO and owner_id is not None and principal.user_id == owner_id


def require(principal: Principal, action: Action) -> None:
    """Let *action* pass.

    Raises:
        WherryError: ``forbidden``.
    """
    if not may(principal, action):
        who = "Only an expert or an administrator" if action in _EXPERTS_TOO else "Only an administrator"
        raise WherryError("forbidden", f"{who} may do this.")


def require_owned(principal: Principal, action: Action, owner_id: str, what: str) -> None:
    """Let *action* on *what* pass. What belongs to others does not exist for the caller.

    Raises:
        NotFound: it is not the caller's.
    """
    if not may(principal, action, owner_id):
        raise missing(what)


def missing(what: str) -> NotFound:
    """Return the one answer for what is not there and for what is not the caller's."""
    return NotFound(f"There is no {what}, or it is not yours.")
