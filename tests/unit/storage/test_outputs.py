from datetime import UTC, datetime
from typing import Any

import pytest

from services.storage.core.outputs import below, listing, one, page, stored_by
from shared.errors import NotFound
from shared.job import Attempt, BlobRef, GangMember, Job, OutputsRef, Owner
from shared.manifest import Entry, Manifest
from shared.spec import JobSpec
from shared.states import AttemptState, JobState

A, B, LOG, FOREIGN = (BlobRef(sha256=letter * 64, size=1) for letter in "abcf")
HELD = {A.sha256, B.sha256, LOG.sha256}


def manifest(*entries: Entry, stdout: BlobRef | None = LOG) -> Manifest:
    return Manifest(job_id="j1", attempt=1, entries=entries, stdout=stdout, skipped=("link: a link",))


def test_entries_come_by_path_with_the_logs_among_them() -> None:
    listed = listing(
        manifest(Entry(path="z", blob=A), Entry(path="a", kind="dir"), Entry(path="a/b", blob=B)), HELD, 5.0
    )
    assert listed.paths == ("_stdout.txt", "a", "a/b", "z")
    assert one(listed, "_stdout.txt").entries == (Entry(path="_stdout.txt", blob=LOG, mtime=5.0),)


def test_bytes_that_the_attempt_has_not_stored_are_not_served() -> None:
    listed = listing(manifest(Entry(path="mine", blob=A), Entry(path="stolen", blob=FOREIGN)), HELD, 0)
    assert listed.paths == ("_stdout.txt", "mine")
    assert any("stolen" in remark for remark in listed.skipped)
    with pytest.raises(NotFound):
        one(listed, "stolen")


@pytest.mark.parametrize(
    "path", ["../x", "a/../../x", "/etc/x", "a//x", "./x", "..", "", "a/", "..\\x", "a\\..\\x", "a\0b"]
)
def test_a_path_that_leads_out_of_the_outputs_is_not_served(path: str) -> None:
    listed = listing(manifest(Entry(path=path, blob=A), Entry(path="a..b/..c/d\\e", blob=B)), HELD, 0)
    assert listed.paths == ("_stdout.txt", "a..b/..c/d\\e")
    assert any("no path below" in remark for remark in listed.skipped)


def test_a_foreign_log_is_not_served_either() -> None:
    assert listing(manifest(stdout=FOREIGN), HELD, 0).paths == ()


def test_a_file_named_like_the_log_is_hidden_and_that_is_said() -> None:
    listed = listing(manifest(Entry(path="_stdout.txt", blob=A)), HELD, 0)
    assert one(listed, "_stdout.txt").entries[0].blob == LOG
    assert any("hidden" in remark for remark in listed.skipped)


def test_pages_give_each_entry_once_and_the_remarks_first() -> None:
    entries = tuple(Entry(path=f"d/{number:03}", blob=A) for number in range(25))
    listed = listing(manifest(*entries, stdout=None), HELD, 0)
    seen: list[str] = []
    cursor: str | None = None
    while True:
        found = page(listed, cursor, 10)
        assert bool(found.skipped) == (cursor is None)
        seen += [entry.path for entry in found.entries]
        cursor = found.cursor
        if cursor is None:
            break
    assert seen == [entry.path for entry in entries]


def test_a_page_fits_into_one_message_however_long_the_paths_are() -> None:
    entries = tuple(Entry(path=f"{number:04}" + "p" * 4000, blob=A) for number in range(1000))
    found = page(listing(manifest(*entries, stdout=None), HELD, 0), None, 1000)
    assert 0 < len(found.to_bytes()) < 1_000_000
    assert found.cursor == found.entries[-1].path


def test_an_empty_listing_is_an_empty_page() -> None:
    assert page(listing(manifest(stdout=None), HELD, 0), None, 10).entries == ()


TREE = listing(
    manifest(
        Entry(path="a", kind="dir"), Entry(path="a/b", kind="dir"), Entry(path="a/b/c", blob=A),
        Entry(path="ab", blob=B), Entry(path="a.txt", blob=A), Entry(path="empty", kind="dir"),
        Entry(path="x/y", blob=B),
    ),
    HELD,
    0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("path", "paths"),
    [
        (None, ["a", "a.txt", "a/b", "a/b/c", "ab", "empty", "x/y"]),
        ("a", ["a/b", "a/b/c"]),
        ("a/b/c", ["a/b/c"]),
        ("empty", []),
        ("x", ["x/y"]),
        ("_stdout.txt", ["_stdout.txt"]),
    ],
)
def test_an_input_is_a_file_or_all_that_is_below_a_folder(path: str | None, paths: list[str]) -> None:
    assert [entry.path for entry in below(TREE, path, None, 100).entries] == paths


@pytest.mark.parametrize("path", ["no", "a/b/d", "x/", "emp"])
def test_an_input_that_is_not_there_is_said_to_be_missing(path: str) -> None:
    with pytest.raises(NotFound):
        below(TREE, path, None, 100)


def test_an_input_comes_in_pages() -> None:
    first = below(TREE, None, None, 3)
    rest = below(TREE, None, first.cursor, 100)
    assert [entry.path for entry in (*first.entries, *rest.entries)] == [
        "a",
        "a.txt",
        "a/b",
        "a/b/c",
        "ab",
        "empty",
        "x/y",
    ]
    assert rest.cursor is None


NOW = datetime(2026, 1, 2, tzinfo=UTC)


def ended(**fields: Any) -> Job:
    spec = JobSpec.model_validate({"image": "busybox", "kind": "gang", "gang": {"roles": {"a": {"count": 2}}}})
    return Job(id="j1", owner=Owner(id="u", name="anna"), spec=spec, created_at=NOW, updated_at=NOW, **fields)


def test_what_a_gang_left_was_stored_by_its_first_member() -> None:
    refs = [OutputsRef(manifest=blob, files=1, bytes=1) for blob in (A, B)]
    members = tuple(
        GangMember(
            job_id=f"m{at}", role="a", index=at, node="n", state=JobState.SUCCEEDED, placed_at=NOW, outputs=refs[at]
        )
        for at in (0, 1)
    )
    assert stored_by(ended(members=members)) is None
    assert stored_by(ended(members=members, outputs=refs[0], ended_at=NOW)) == ("m0", 1, NOW)
    assert stored_by(ended(members=members, outputs=refs[1])) is None


def test_what_a_job_left_was_stored_by_the_attempt_that_its_end_names() -> None:
    refs = [OutputsRef(manifest=blob, files=1, bytes=1) for blob in (A, B)]
    attempts = tuple(
        Attempt(number=at + 1, node="n", state=AttemptState.FAILED, placed_at=NOW, ended_at=NOW, outputs=refs[at])
        for at in (0, 1)
    )
    assert stored_by(ended(attempts=attempts, outputs=refs[0])) == ("j1", 1, NOW)
    assert stored_by(ended(attempts=attempts, outputs=refs[1])) == ("j1", 2, NOW)
    assert stored_by(ended(attempts=attempts)) is None
