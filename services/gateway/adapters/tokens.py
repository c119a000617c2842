"""Whose token is it: storage's answers, remembered for a while and forgotten when storage says so."""

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from shared.clock import monotonic
from shared.errors import WherryError
from shared.events import TokenRevoked
from shared.requests.accounts import Principal

Verify = Callable[[str], Awaitable[Principal]]
#: Longer than any token that was ever given out.
TOKEN_CHARS_MAX = 512


class Tokens:
    """Principals by the SHA-256 of their token; the token itself is not kept.

    Args:
        verify: asks storage.
        lifetime_s: seconds that an answer is believed.
        size: tokens remembered at most; the one used longest ago goes first.
    """

    def __init__(self, verify: Verify, *, lifetime_s: float, size: int) -> None:
        self._verify = verify
        self._lifetime_s = lifetime_s
        self._size = size
        self._known: OrderedDict[str, tuple[Principal, float]] = OrderedDict()
        self._revocations = 0

    async def principal(self, token: str) -> Principal:
        """Return whose token it is.

        Raises:
            WherryError: ``unauthenticated``, or ``unavailable`` when storage does not answer.
        """
        if not 0 < len(token) <= TOKEN_CHARS_MAX or not token.isascii():
            raise WherryError("unauthenticated", "That is no token of ours.")
        digest = _digest(token)
        known = self._known.get(digest)
        if known is not None and known[1] > monotonic():
            self._known.move_to_end(digest)
            return known[0]
        return await self._ask(token, digest)

    def remember(self, token: str, principal: Principal) -> None:
        """Keep what a login has just told."""
        self._keep(_digest(token), principal)

    def revoke(self, revoked: TokenRevoked) -> None:
        """Forget a token, or all of a user's."""
        self._revocations += 1
        if revoked.token_sha256 is not None:
            self._known.pop(revoked.token_sha256, None)
        if revoked.user_id is not None:
            for digest in [key for key, (who, _) in self._known.items() if who.user_id == revoked.user_id]:
                del self._known[digest]

    def forget(self, token: str) -> None:
        """Forget one token."""
        self.revoke(TokenRevoked(token_sha256=_digest(token)))

    async def _ask(self, token: str, digest: str) -> Principal:
        before = self._revocations
        principal = await self._verify(token)
        # A revocation that arrived while storage was answering may be of this very token: then ask again next time.
        if before == self._revocations:
            self._keep(digest, principal)
        return principal

    def _keep(self, digest: str, principal: Principal) -> None:
        self._known[digest] = (principal, monotonic() + self._lifetime_s)
        self._known.move_to_end(digest)
        while len(self._known) > self._size:
            self._known.popitem(last=False)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
