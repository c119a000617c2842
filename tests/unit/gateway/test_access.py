import itertools

import pytest

from services.gateway.core.access import Action, may, require, require_owned
from shared.errors import NotFound, WherryError
from shared.requests.accounts import Principal

ANNA = Principal(user_id="u1", name="anna")
BORIS = Principal(user_id="u2", name="boris", role="expert")
ADMIN = Principal(user_id="u0", name="root", role="admin")


def test_an_administrator_may_do_everything() -> None:
    assert all(may(ADMIN, action, owner) for action, owner in itertools.product(Action, (None, "u1", "u0")))


@pytest.mark.parametrize("somebody", [ANNA, BORIS])
def test_others_may_see_and_change_their_own_and_nothing_else(somebody: Principal) -> None:
    allowed = {
        (action, owner)
        for action, owner in itertools.product(Action, (None, somebody.user_id, "u9"))
        if may(somebody, action, owner)
    }
    expert = {(Action.MANAGE_MODELS, owner) for owner in (None, somebody.user_id, "u9")}
    own = {(Action.SEE, somebody.user_id), (Action.CHANGE, somebody.user_id)}
    assert allowed == own | (expert if somebody.role == "expert" else set())


def test_what_belongs_to_others_does_not_exist() -> None:
    with pytest.raises(NotFound):
        require_owned(ANNA, Action.SEE, "u2", "such job")
    require_owned(ANNA, Action.SEE, "u1", "such job")


def test_what_is_for_experts_is_forbidden_to_users() -> None:
    with pytest.raises(WherryError, match="expert or an administrator"):
        require(ANNA, Action.MANAGE_MODELS)
    require(BORIS, Action.MANAGE_MODELS)


def test_what_is_for_administrators_is_forbidden_to_others() -> None:
    with pytest.raises(WherryError) as caught:
        require(ANNA, Action.MANAGE_USERS)
    assert caught.value.code == "forbidden"
    require(ADMIN, Action.MANAGE_USERS)
