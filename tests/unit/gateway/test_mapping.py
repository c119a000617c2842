"""Which files become items, in which messages they travel, and under which names results are shown."""

import contextlib
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.core import mapping
from shared.errors import WherryError
from shared.job import BlobRef, Item, ItemCounts, ItemFile, Job, Owner
from shared.spec import ITEMS_AT_ONCE, ITEMS_MAX, ItemSpec, JobSpec
from shared.states import ItemState, JobState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BLOB = BlobRef(sha256="0" * 64, size=1)


def map_job(**changes: object) -> Job:
    spec = JobSpec.model_validate({"kind": "map", "image": "busybox", "map": {"open": True}})
    job = Job(id="j1", owner=Owner(id="u1", name="anna"), spec=spec, created_at=NOW, updated_at=NOW)
    return job.model_copy(update=changes)


def item(name: str, *paths: str, index: int = 0) -> Item:
    files = tuple(ItemFile(path=path, blob=BLOB) for path in paths)
    spec = ItemSpec(name=name)
    return Item(id="i1", index=index, spec=spec, state=ItemState.SUCCEEDED, added_at=NOW, ended_at=NOW, files=files)


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        (None, "anything/at.all", True),
        ("*.png", "a.png", True),
        ("*.png", "deep/er/a.png", True),
        ("*.png", "a.png.txt", False),
        ("photos/*.png", "photos/a.png", True),
        ("photos/*.png", "photos/deep/a.png", False),
        ("photos/*.png", "my/photos/a.png", False),
        ("photos/**", "photos/deep/a.png", True),
        ("**/a.png", "a.png", True),
        ("**/a.png", "x/y/a.png", True),
        ("**/a.png", "x/ya.png", False),
        ("img?.png", "img1.png", True),
        ("img?.png", "img12.png", False),
        ("[a-c]*.txt", "b1.txt", True),
        ("[!a-c]*.txt", "b1.txt", False),
        ("a[.txt", "a[.txt", True),
        ("a+b(1).txt", "a+b(1).txt", True),
        ("a/[!b]/c", "a///c", False),
    ],
)
def test_a_pattern_chooses_files_as_a_shell_does(pattern: str | None, path: str, *, fits: bool):
    assert bool(mapping.matcher(pattern)(path)) is fits


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a" * 100 + "b", "a" * 255),
        ("**/" * 80 + "b", "a/" * 500 + "c"),
        ("**a" * 80 + "b", "a" * 1000),
        ("*a" + "?" * 200 + "b", "a" * 1000),
    ],
)
def test_a_pattern_with_many_stars_is_told_at_once_not_to_fit(pattern: str, path: str):
    # As a regular expression each of these goes on for longer than anybody waits.
    assert not mapping.matcher(pattern)(path)


@given(
    st.text("*?/ab[!]-", min_size=1, max_size=12).filter(lambda text: "***" not in text),
    st.text("ab/-", max_size=12),
)
def test_a_pattern_means_what_its_regular_expression_does(pattern: str, path: str):
    means = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    text: list[str] = []
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern if "/" in pattern else f"**/{pattern}"):
        if token.startswith("[") and len(token) > 1:
            negated = token[1] == "!"
            plain = re.sub(r"(?<!\\-)\\-(?!\\-)", "-", re.escape(token[1 + negated : -1]))
            text.append(f"(?!/)[{'^' if negated else ''}{plain}]")
        else:
            text.append(means[token] if token in means else re.escape(token))
    try:
        for one in text:
            re.compile(one)
    except re.error:
        with pytest.raises(WherryError):
            mapping.matcher(pattern)
    else:
        fits = re.fullmatch("".join(text), path, re.DOTALL) is not None
        assert bool(mapping.matcher(pattern)(path)) is fits


@given(st.text(min_size=1, max_size=30), st.text(max_size=60))
def test_any_text_is_a_pattern_or_refused(pattern: str, path: str):
    with contextlib.suppress(WherryError):
        mapping.matcher(pattern)(path)


@pytest.mark.parametrize("inner", ["a--z", "a&&b", "[a", "^a", "a||b", "~~", "\\d", "a-"])
def test_brackets_mean_the_characters_that_stand_in_them(inner: str):
    assert mapping.matcher(f"[{inner}]")(inner[0])


def test_a_range_that_ends_before_it_begins_is_refused():
    with pytest.raises(WherryError, match=r"map\.pattern"):
        mapping.matcher("[z-a].png")


def test_all_items_of_a_job_together_have_a_limit_and_it_is_said_what_to_do():
    items = [ItemSpec(name="n", params={"x": "y" * 1000}) for _ in range(3)]
    size = sum(len(item.model_dump_json(exclude_defaults=True)) for item in items)
    mapping.check_bytes(items, 0, size)
    mapping.check_bytes(items, 500, size + 500)
    with pytest.raises(
        WherryError, match=rf"{size + 500:,} bytes .* these would be {size + 501:,}. .* dataset"
    ) as refused:
        mapping.check_bytes(items, 501, size + 500)
    assert refused.value.code == "too_large"


@given(st.lists(st.integers(0, 12_000), max_size=60), st.integers(1, 1300))
def test_messages_have_all_items_in_order_and_none_is_too_large(sizes: list[int], copies: int):
    items = [ItemSpec(name=f"n{at}", params={"x": "y" * size}) for at, size in enumerate(sizes)]
    items += [ItemSpec(name=f"m{at}") for at in range(copies)]
    batches = list(mapping.messages(items))
    assert [one for batch in batches for one in batch] == items
    assert all(0 < len(batch) <= ITEMS_AT_ONCE for batch in batches)
    assert all(sum(item.bytes for item in batch) <= mapping.MESSAGE_BYTES for batch in batches)


@pytest.mark.parametrize(
    ("one", "paths"),
    [
        (item("a.png", "a.png"), ["j1/0001-a.png"]),
        (item("a.bmp", "a.png"), ["j1/0001-a.png"]),
        (item("some words", "out"), ["j1/0001-some words"]),
        (item("some words", "out.csv"), ["j1/0001-some words.csv"]),
        (item("v1.2 final words", "out.csv"), ["j1/0001-v1.2 final words.csv"]),
        (item("a/b:c", "out"), ["j1/0001-a_b_c"]),
        (item("..", "out"), ["j1/0001-item"]),
        (item("x", "deep/a.png", index=9999), ["j1/10000-x/deep/a.png"]),
        (item("x", "a", "b/c", index=41), ["j1/0042-x/a", "j1/0042-x/b/c"]),
    ],
)
def test_results_have_consecutive_names_that_say_what_they_are_of(one: Item, paths: list[str]):
    entries = mapping.entries("j1", one)
    assert [entry.path for entry in entries] == paths
    assert {mapping.index_of("j1", path) for path in paths} == {one.index}


@given(st.text(min_size=1, max_size=255))
def test_no_name_of_an_item_leads_out_of_its_folder_or_is_too_long(name: str):
    (entry,) = mapping.entries(
        "j1", item("x", "out.png").model_copy(update={"spec": ItemSpec.model_construct(name=name, params={})})
    )
    folder, _, last = entry.path.partition("/")
    assert folder == "j1"
    assert "/" not in last
    assert len(last.encode()) <= 255


@pytest.mark.parametrize("path", ["j1", "j1/1-a", "j2/0001-a", "j1/0000-a", "../0001-a", "j1/000x-a", ""])
def test_what_no_item_has_left_is_no_index(path: str):
    assert mapping.index_of("j1", path) is None


def test_a_job_that_has_ended_is_cancelled_or_closed_takes_no_items():
    mapping.require_open(map_job(), 1)
    for changes in (
        {"state": JobState.SUCCEEDED},
        {"cancel_requested_at": NOW},
        {"items": ItemCounts(total=1, closed=True)},
    ):
        with pytest.raises(WherryError) as caught:
            mapping.require_open(map_job(**changes), 1)
        assert caught.value.code == "closed"
    with pytest.raises(WherryError) as caught:
        mapping.require_open(map_job(items=ItemCounts(total=ITEMS_MAX)), 1)
    assert caught.value.code == "invalid"


@pytest.mark.parametrize("path", ["over", "data/", "data/../x", "data/./x", "data//x", "/data/x", "other/x"])
def test_a_path_that_is_not_below_an_input_is_no_item(path: str):
    assert mapping.unusable_items([ItemSpec(path=path)], ["data"], "items")
    assert not mapping.unusable_items([ItemSpec(path="data/a/b.txt")], ["data"], "items")


def test_two_items_of_one_id_and_numbers_that_json_does_not_know_are_refused():
    twice = ItemSpec(id="i" + "a" * 25)
    assert [one.field for one in mapping.unusable_items([twice, twice], [], "items")] == ["items.1.id"]
    odd = ItemSpec(params={"deep": [{"x": float("nan")}]})
    assert [one.field for one in mapping.unusable_items([odd], [], "items")] == ["items.0.params.deep.0.x"]
