"""What the shell needs of the outside."""

from typing import Protocol

from services.notifier.core.delivery import Outcome
from shared.events import DeliveryRequested


class Sender(Protocol):
    """One way of telling somebody."""

    def host(self, request: DeliveryRequested) -> str:
        """Return what is shared by deliveries that would wait for the same slow receiver."""
        ...

    async def send(self, request: DeliveryRequested) -> Outcome:
        """Try once. Whatever the receiver does is an outcome, not an exception."""
        ...
