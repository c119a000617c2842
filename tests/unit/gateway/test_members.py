"""How far a reader of many members' output has come, as one SSE id."""

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.core.members import Member, Places, cursor, parse_cursor


def member(name: str, since_us: int) -> Member:
    return Member(f"j{name:0>12}", "worker-0", "n1", since_us)


def back(places: Places) -> Places:
    return Places.parse(places.event_id())


def test_the_places_of_a_gangs_members_are_one_id() -> None:
    places = Places()
    for name in ("a", "b"):
        places.begin(member(name, 0))
    places.come(member("a", 0), (1, 5))
    assert places.event_id() == "0000000a=1.5,0000000b="
    places.end(member("a", 0))
    assert back(places).begin(member("a", 0)) == (1, 5)
    assert back(places).begin(member("b", 0)) is None
    assert not back(places).is_given(member("c", 0))


def test_what_is_no_id_of_ours_is_nothing() -> None:
    for text in (None, "", "1.5", "x", ",,,", "@", "@x,=1.2"):
        assert Places.parse(text) == Places()
    assert Places.parse("abc=1.2,x=y,=,").places == {"abc": (1, 2), "x": None}


def test_members_that_were_given_to_their_end_are_named_no_longer() -> None:
    places, first, second = Places(), member("a", 100), member("b", 200)
    for one in (first, second):
        places.begin(one)
        places.come(one, (1, 7))
    places.end(first)
    assert back(places).begin(first) == (1, 7)  # others of its time may not be known yet
    places.see(100)
    assert places.event_id() == "@100,0000000b=1.7"
    assert back(places).is_given(first)
    assert not back(places).is_given(second)
    assert not back(places).is_given(member("c", 101))
    places.end(second)
    places.see(250)
    assert places.event_id() == "@250"


def test_a_member_of_which_nothing_was_given_yet_is_not_taken_for_one_that_is_over() -> None:
    places, quiet = Places(), member("a", 100)
    places.begin(quiet)
    places.see(100)
    assert not back(places).is_given(quiet)


@given(st.text())
def test_any_text_is_a_cursor_or_none(text: str) -> None:
    found = parse_cursor(text)
    assert found is None or cursor(*found) == text or found[1] == int(text.rpartition(".")[2])


def test_a_cursor_comes_back() -> None:
    assert parse_cursor(cursor("jabc2", 17)) == ("jabc2", 17)
