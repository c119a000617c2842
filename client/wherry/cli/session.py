"""Who the command is on which server, for every command that asks one."""

import os

from client.wherry import config
from client.wherry.client import Client
from client.wherry.errors import WherryError

#: How long commands go on trying, in seconds: one answer is soon missed, a job that is watched is worth waiting for.
PATIENCE_S, LONG_PATIENCE_S = 10.0, 120.0


def connect(*, patience_s: float = PATIENCE_S) -> Client:
    """Return a client with the session that `wherry login` kept.

    Raises:
        WherryError: there is none (code ``not_logged_in``).

    """
    known = config.load(os.environ)
    if known.token is None:
        raise WherryError("not_logged_in", f"you are not logged in to {known.url}")
    return Client(known.url, known.token, patience_s=patience_s)
