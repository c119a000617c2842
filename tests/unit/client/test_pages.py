"""Lists that the server gives page by page."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from client.wherry import models, scripts
from client.wherry.effects import Emit, Response, Send


def given(limit: int | None, *pages: tuple[Sequence[str], str | None]) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the names of the users that a list gives, and the queries that it took; the server has *pages*."""
    filters = {"name": "", "state": ["a", "b"], "owner": None}
    series = scripts.each(models.UserPage, "/users", filters, lambda page: page.users, limit, 1, 3)
    left, found, asked = list(pages), list[str](), list[dict[str, Any]]()
    answer: Response | None = None
    while True:
        try:
            effect = series.send(answer)
        except StopIteration:
            return found, asked
        answer = None
        if isinstance(effect, Emit):
            found.append(effect.item.name)
        elif isinstance(effect, Send):
            asked.append(dict(effect.request.query))
            names, cursor = left.pop(0)
            page = {"users": [{"name": name} for name in names], "cursor": cursor}
            answer = Response(200, {}, json.dumps(page).encode())


def test_a_list_goes_on_where_its_last_page_ended() -> None:
    found, asked = given(None, ("abc", "c1"), ("d", None))
    assert found == ["a", "b", "c", "d"]
    assert asked == [
        {"state": ["a", "b"], "limit": "3"}, {"state": ["a", "b"], "limit": "3", "cursor": "c1"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "pages", "found", "limits"),
    [
        (4, [("abc", "c1"), ("d", "c2")], "abcd", ["3", "1"]),
        (2, [("abc", "c1")], "ab", ["2"]),  # a server that gives more than it is asked for
        (0, [], "", []),
        (None, [("", "c1")], "", ["3"]),  # a page of nothing is the last
    ],
)
def test_nothing_is_asked_for_that_is_not_wanted(
    limit: int | None, pages: list[tuple[Sequence[str], str | None]], found: str, limits: list[str]
) -> None:
    names, asked = given(limit, *pages)
    assert ("".join(names), [one["limit"] for one in asked]) == (found, limits)
