from datetime import UTC, datetime, timedelta

import pytest

from services.storage.core.people import FREE_TRIES, SessionTimes, Tries, check_user, name_key
from shared.errors import WherryError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("fields", "at_fault"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "-x"}, "name"),
        ({"name": "ann\n"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"password": "short"}, "password"),
        ({"password": "x" * 2000}, "password"),
        ({"email": "nobody"}, "email"),
        ({"email": "a@b\r\nBcc: c@d"}, "email"),
        ({"email": "x" * 300 + "@b"}, "email"),
    ],
)
def test_a_field_that_cannot_be_is_named(fields: dict[str, str], at_fault: str) -> None:
    with pytest.raises(WherryError) as caught:
        check_user(**fields)
    assert caught.value.code == "invalid"
    assert [problem.field for problem in caught.value.fields] == [at_fault]


def test_ordinary_users_are_fine() -> None:
    check_user(name="ann.smith@example.org", password="long enough", email="ann@example.org")
    check_user(email="")


def test_one_name_has_one_key_however_it_is_spelt() -> None:
    assert name_key("Ann") == name_key("aNN")


def test_a_session_dies_of_idleness_and_of_age() -> None:
    assert SessionTimes(NOW, NOW).is_alive(NOW + timedelta(hours=11, minutes=59))
    assert not SessionTimes(NOW, NOW).is_alive(NOW + timedelta(hours=12))
    used = NOW + timedelta(days=6, hours=23)
    assert SessionTimes(NOW, used).is_alive(used + timedelta(minutes=59))
    assert not SessionTimes(NOW, used).is_alive(NOW + timedelta(days=7))


def test_five_guesses_are_free_and_then_the_wait_doubles() -> None:
    tries = Tries()
    for _ in range(FREE_TRIES):
        tries = tries.begin(100.0)
    with pytest.raises(WherryError) as caught:
        tries.begin(100.0)
    assert caught.value.code == "throttled"
    tries = tries.begin(161.0)
    with pytest.raises(WherryError):
        tries.begin(161.0 + 61)
    assert tries.begin(161.0 + 121).count == FREE_TRIES + 2


def test_after_quiet_a_guess_is_free_again() -> None:
    tries = Tries()
    for _ in range(FREE_TRIES):
        tries = tries.begin(0.0)
    assert tries.begin(121.0) == Tries(1, 121.0)


def test_the_wait_has_an_end() -> None:
    assert Tries(1000, 0.0).free_at == 900.0
