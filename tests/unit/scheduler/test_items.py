"""The item book of one map job: what has become of each item, and who has which."""

import random
from datetime import UTC, datetime

import pytest

from services.scheduler.core.items import Book
from shared.job import Failure, Item
from shared.spec import ItemSpec
from shared.states import EndReason, ItemState

AT = datetime(2026, 1, 1, tzinfo=UTC)
PLENTY = 10**6


def item(number: int, state: ItemState = ItemState.WAITING, tries: int = 0) -> Item:
    name = f"i{number}"
    error = Failure(reason=EndReason.ITEM_FAILED, message="no picture") if state is ItemState.FAILED else None
    spec = ItemSpec(name=name, params={"n": number})
    return Item(id=name, index=number, spec=spec, state=state, tries=tries, added_at=AT, error=error)


def book_of(count: int) -> Book:
    book = Book()
    book.believe(item(number) for number in range(count))
    return book


def hand(book: Book, worker: str) -> list[str]:
    found = book.hand(worker)
    return list(found.items) if found else []


def share(book: Book, begun: tuple[str, ...], mono: float = 0.0, **ahead: int) -> set[str]:
    changed = book.share(ahead, begun, mono, PLENTY)
    assert list(book.check()) == []
    return changed


def test_items_are_given_in_order_to_whoever_has_least() -> None:
    book = book_of(5)
    assert share(book, (), a=2, b=4) == {"a", "b"}
    assert (hand(book, "a"), hand(book, "b")) == (["i0", "i2"], ["i1", "i3", "i4"])
    assert book.waiting == 0


def test_a_worker_is_given_more_when_it_has_half_of_its_number_left() -> None:
    book = book_of(20)
    share(book, ("a",), a=8)
    book.believe(item(number, ItemState.SUCCEEDED, tries=1) for number in range(3))
    assert share(book, ("a",), a=8) == set()
    book.believe([item(3, ItemState.SUCCEEDED, tries=1)])
    assert share(book, ("a",), a=8) == {"a"}
    assert hand(book, "a") == [f"i{number}" for number in range(4, 12)]


def test_a_worker_has_no_more_bytes_than_it_may_but_for_one_item() -> None:
    book = book_of(5)
    book.share({"a": 4}, (), 0.0, most_bytes=1)
    assert hand(book, "a") == ["i0"]
    assert book.hand("a").size > 1


def test_what_a_worker_that_is_gone_had_is_next() -> None:
    book = book_of(6)
    share(book, ("a",), a=4)
    assert book.drop("a") == ("i0", "i1", "i2", "i3")
    assert book.drop("a") == ()
    share(book, ("b",), b=6)
    assert hand(book, "b") == [f"i{number}" for number in range(6)]


def test_an_idle_worker_takes_half_of_what_another_has_not_begun() -> None:
    book = book_of(5)
    share(book, ("a",), a=5)
    assert share(book, ("a", "b"), a=5, b=5) == {"a", "b"}
    assert (hand(book, "a"), hand(book, "b")) == (["i0", "i1", "i2"], ["i3", "i4"])


def test_what_is_begun_is_never_taken_away() -> None:
    book = book_of(1)
    share(book, ("a",), a=4)
    assert share(book, ("a", "b"), a=4, b=4) == set()
    assert hand(book, "a") == ["i0"]


def test_what_waits_for_a_worker_that_has_not_begun_goes_to_one_that_has() -> None:
    book = book_of(1)
    share(book, (), slow=1)
    assert share(book, ("fast",), slow=1, fast=4) == {"slow", "fast"}
    assert (hand(book, "slow"), hand(book, "fast")) == ([], ["i0"])
    assert share(book, ("fast",), slow=1, fast=4) == set(), "it goes to and fro"


def test_an_item_that_was_tried_is_behind_those_that_were_not() -> None:
    book = book_of(3)
    share(book, ("a",), a=1)
    book.believe([item(0, tries=1)])
    share(book, ("a",), a=3)
    assert hand(book, "a") == ["i1", "i2", "i0"]
    assert book.hand("a").items["i0"].tries == 1


def test_only_the_ids_of_what_has_succeeded_are_kept() -> None:
    book = book_of(2)
    book.believe([item(0, ItemState.SUCCEEDED), item(1, ItemState.FAILED)])
    assert book.get("i0") is None
    assert book.get("i1") == item(1, ItemState.FAILED)
    assert (book.state("i0"), book.state("i1"), book.state("i2")) == (ItemState.SUCCEEDED, ItemState.FAILED, None)
    assert book.failed() == ("i1",)
    counts = book.counts(closed=True)
    assert (counts.total, counts.succeeded, counts.failed, counts.closed) == (2, 1, 1, True)


def test_how_long_workers_have_had_nothing_is_known() -> None:
    book = book_of(1)
    share(book, ("a", "b"), mono=5.0, a=1, b=1)
    assert (book.hand("a").empty_since, book.hand("b").empty_since) == (None, 5.0)
    book.believe([item(0, ItemState.SUCCEEDED)])
    share(book, ("a", "b"), mono=9.0, a=1, b=1)
    assert (book.hand("a").empty_since, book.hand("b").empty_since) == (9.0, 5.0)


def test_a_line_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no line of a book"):
        Book().read([b"x i0 {}"])


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_every_item_is_in_one_place_and_ends_once(seed: int) -> None:
    dice = random.Random(seed)
    book, added, ended = Book(), 0, dict[str, ItemState]()
    for step in range(400):
        match dice.randrange(5):
            case 0:
                more = dice.randrange(8)
                book.believe(item(number) for number in range(added, added + more))
                added += more
            case 1 | 2 if book.hands():
                worker = dice.choice(book.hands())
                for item_id in hand(book, worker)[: dice.randrange(4)]:
                    assert item_id not in ended, "an item was given after its end"
                    state = dice.choice(list(ItemState))
                    book.believe([item(int(item_id[1:]), state)])
                    if state is not ItemState.WAITING:
                        ended[item_id] = state
            case 3 if book.hands():
                book.drop(dice.choice(book.hands()))
            case 4:
                there = [f"w{number}" for number in range(6) if dice.random() < 0.7]
                begun = tuple(worker for worker in there if dice.random() < 0.8)
                share(book, begun, float(step), **{worker: dice.randrange(5) for worker in there})
                for worker in begun:
                    assert worker in book.hands()
        assert list(book.check()) == []
        assert book.counts(closed=False).ended == len(ended)
        again = Book()
        again.read(book.lines())
        assert (again.lines(), again.counts(closed=False)) == (book.lines(), book.counts(closed=False))


@pytest.mark.parametrize("seed", range(10))
def test_nothing_waits_and_no_unbegun_item_is_held_back_while_a_worker_is_idle(seed: int) -> None:
    dice = random.Random(seed)
    book = book_of(dice.randrange(60))
    ahead = {f"w{number}": dice.randrange(1, 9) for number in range(dice.randrange(1, 8))}
    for _ in range(80):
        book.share(ahead, tuple(ahead), 0.0, PLENTY)
        hands = [hand(book, worker) for worker in ahead]
        if not all(hands):
            assert book.waiting == 0
            assert all(len(one) <= 1 for one in hands), "one worker has several and another none"
        for worker in ahead:
            if (has := hand(book, worker)) and dice.random() < 0.5:
                book.believe([item(int(has[0][1:]), ItemState.SUCCEEDED)])
    assert book.open == 0
