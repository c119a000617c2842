"""Datasets as documents."""

from datetime import UTC, datetime

import pytest

from services.storage.core import datasets as d
from services.storage.core.projections import datasets_of
from services.storage.core.queries import cursor_text
from shared.errors import NotFound, WherryError
from shared.job import BlobRef, Job, Owner
from shared.requests.artifacts import Artifact
from shared.requests.datasets import DatasetListQuery, DatasetPut, DatasetQuery, DatasetUpdate
from shared.spec import JobSpec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PUT = DatasetPut(name="cats", owner_id="u1", owner_name="anna")


def document(*digests: str) -> dict[str, object]:
    made = d.new_document(PUT, 1)
    for number, sha256 in enumerate(digests, 1):
        blob = BlobRef(sha256=sha256, size=number)
        artifact = Artifact(id=f"a{number}", owner_id="u1", blob=blob, created_at=NOW)
        made["versions"].append(d.version_document(number, artifact, number))
    return made | d.changes(made, PUT, 1)


def test_versions_are_shown_newest_first_or_the_one_that_is_asked_for():
    three = document("x", "y", "z")
    assert [one.version for one in d.dataset(three).versions] == [3, 2, 1]
    assert [one.version for one in d.dataset(three, DatasetQuery(name="cats", alone=True)).versions] == [3]
    found = d.dataset(three, DatasetQuery(name="cats", version=2, alone=True))
    assert ([one.blob.sha256 for one in found.versions], found.version_count) == (["y"], 3)
    with pytest.raises(NotFound):
        d.dataset(three, DatasetQuery(name="cats", version=4))


def test_the_same_bytes_are_found_again():
    assert d.version_with(document("x", "y"), "x") == 1
    assert d.version_with(document("x", "y", "x"), "x") == 3
    assert d.version_with(document(), "x") is None


def test_what_is_not_given_stays_and_searches_see_what_is_there_then():
    described = document() | {"description": "Old", "labels": ["One"]}
    changed = d.changes(described, DatasetUpdate(name="cats", labels=("Two",)), 7)
    assert changed == {"labels": ["Two"], "search": "cats\nold\ntwo", "updated_us": 7}


def test_words_are_never_operators_and_cursors_are_ours():
    wanted = d.list_filter(DatasetListQuery(text="$name .* Cat", viewer_id="u1", cursor=cursor_text("cats")))
    words = [part["$expr"]["$gte"][0]["$indexOfCP"][1] for part in wanted["$and"] if "$expr" in part]
    assert words == [{"$literal": word} for word in ("$name", ".*", "cat")]
    assert {"_id": {"$gt": "cats"}} in wanted["$and"]
    with pytest.raises(WherryError):
        d.list_filter(DatasetListQuery(cursor=cursor_text(1)))


def test_administrators_see_all_and_others_their_own_and_shared_ones():
    everything = d.list_filter(DatasetListQuery())
    mine = d.list_filter(DatasetListQuery(viewer_id="u1"))
    assert {"$or": [{"owner_id": {"$eq": "u1"}}, {"visibility": "shared"}]} in mine["$and"]
    assert len(mine["$and"]) == len(everything["$and"]) + 1


def test_a_job_refers_to_its_datasets_by_version():
    inputs = {"a": "dataset:cats@2", "b": "dataset:cats@2", "c": "dataset:dogs@1", "d": "https://example.org/x"}
    job = Job(
        id="j1",
        owner=Owner(id="u1", name="anna"),
        spec=JobSpec(image="x", inputs=inputs),
        created_at=NOW,
        updated_at=NOW,
    )
    assert datasets_of(job) == ["cats@2", "dogs@1"]
    assert d.references("cats", 2) == {"datasets": "cats@2"}
    between = d.references("cats", None)["datasets"]
    refs = ("cats@1", "cats@99", "cats-2@1", "catsx@1", "cat@1", "dogs@1")
    assert [ref for ref in refs if between["$gte"] <= ref < between["$lt"]] == ["cats@1", "cats@99"]
