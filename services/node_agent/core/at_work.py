"""Which item of a map job a worker's program is at: the first that it was given and has not answered. Pure."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Given:
    """An item that a program was given; `slot` names the one try of it."""

    id: str
    slot: str


@dataclass(slots=True)
class AtWork:
    """What a program has, as its output is read: its answers are seen there before anybody takes them in.

    Attributes:
        item: the item that it is at; empty where that is none, or not known.
    """

    item: str = ""
    _given: tuple[Given, ...] = ()
    _answered: set[str] = field(default_factory=set[str])  # slots of them

    def has(self, given: tuple[Given, ...]) -> None:
        """Take in what the program has by now, in the order in which it was given it."""
        if given is not self._given:
            self._given = given
            self._answered.intersection_update(one.slot for one in given)
            self._go_on()

    def answered(self, item_id: str) -> None:
        """Take in that the program has answered an item."""
        slots = [one.slot for one in self._given if one.id == item_id and one.slot not in self._answered]
        self._answered.update(slots[:1])
        self._go_on()

    def _go_on(self) -> None:
        self.item = next((one.id for one in self._given if one.slot not in self._answered), "")
