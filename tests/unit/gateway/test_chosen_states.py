import pytest

from services.gateway.routes.http import chosen
from shared.errors import WherryError
from shared.states import ItemState


@pytest.mark.parametrize(
    ("given", "states"),
    [(None, ()), ([], ()), (["failed, waiting", "succeeded,"], ("failed", "waiting", "succeeded"))],
)
def test_states_are_named_again_or_with_commas(given: list[str] | None, states: tuple[str, ...]) -> None:
    assert chosen(given, ItemState) == states


def test_a_state_that_is_none_is_said_with_those_that_there_are() -> None:
    with pytest.raises(WherryError, match="'done' is no state; there are waiting, succeeded, failed"):
        chosen(["failed,done"], ItemState)
