"""Questions about dead letters, and handing one to its reader again."""

from services.storage.adapters.fleet_store import FleetStore
from services.storage.core import fleet as f
from services.storage.core import queries as q
from services.storage.routes.table import Route, route
from shared import channels as c
from shared import observe
from shared.bus import Bus
from shared.clock import utc_now
from shared.errors import NotFound, WherryError
from shared.ids import TOKEN
from shared.requests.administration import DeadLetterId, DeadLetterList, DeadLetterQuery, DeadLetterView

#: For the reader's answer, and for a reader that is just being started or is about to lead.
_REPLAY_S, _REPLAY_AGAIN_S = 5.0, 3.0
log = observe.logger("storage.letters")


class LetterRoutes:
    """Answers about dead letters. Whether the asker may see them is the gateway's to check."""

    def __init__(self, bus: Bus, store: FleetStore) -> None:
        self._bus = bus
        self._store = store

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [route(c.DEAD_LETTERS, self.list), route(c.DEAD_LETTER_REPLAY, self.replay)]

    async def list(self, query: DeadLetterQuery) -> DeadLetterList:
        """Return a page of dead letters, newest first."""
        page, more = await self._store.letters(f.letters_filter(query), q.bounded(query.limit, q.LETTERS_MOST))
        return DeadLetterList(letters=tuple(page), cursor=f.letters_cursor(page[-1]) if more else None)

    async def replay(self, query: DeadLetterId) -> DeadLetterView:
        """Hand a dead letter to its reader again. If it fails once more, it comes back as not replayed.

        Raises:
            NotFound: there is none of this id.
            WherryError: ``conflict``: its reader cannot be a service of ours; ``unavailable``: its reader is away, and
                the letter stays as it was.
        """
        # Noted before it is handed over: what the reader then says comes later.
        taken = await self._store.take_letter(query.id, utc_now())
        if taken is None:
            raise NotFound(f"There is no dead letter {query.id!r}.")
        letter = taken.letter
        if not TOKEN.match(letter.reader):
            raise WherryError("conflict", f"Nobody can be asked to read it again: its reader is {letter.reader!r}.")
        try:
            await self._bus.ask(c.REPLAY, letter, timeout_s=_REPLAY_S, retry_s=_REPLAY_AGAIN_S, reader=letter.reader)
        except WherryError:
            await self._store.put_back_letter(query.id)
            raise
        log.info("dead_letter_replayed", letter=letter.id, reader=letter.reader)
        return taken
