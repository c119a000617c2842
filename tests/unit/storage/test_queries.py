import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.storage.core import queries as q
from shared.errors import WherryError
from shared.requests.jobs import EventQuery, JobListQuery


@given(st.integers(0, 2**60), st.text(max_size=40))
def test_a_cursor_points_where_it_was_made(created_us: int, job_id: str) -> None:
    assert q.cursor_after(q.cursor_text(created_us, job_id)) == [created_us, job_id]


@pytest.mark.parametrize(
    "cursor",
    [
        "!!!",
        "a",
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
        base64.urlsafe_b64encode(json.dumps([{"$gt": 0}, "j"]).encode()).decode(),
        base64.urlsafe_b64encode(json.dumps({"a": 1}).encode()).decode(),
    ],
)
def test_a_made_up_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(WherryError) as caught:
        q.jobs_filter(JobListQuery(cursor=cursor))
    assert caught.value.fields[0].field == "cursor"


def test_an_unknown_state_is_refused_by_name() -> None:
    with pytest.raises(WherryError, match="no such state") as caught:
        q.jobs_filter(JobListQuery(states=("running", "asleep")))
    assert "asleep" in caught.value.fields[0].message


@given(st.text(), st.text(), st.text())
def test_users_text_is_only_ever_a_value(name: str, kind: str, label: str) -> None:
    wanted = q.jobs_filter(JobListQuery(owner_id="u1", name=name, kind=kind, label=label))
    assert wanted == {
        "owner_id": {"$eq": "u1"}, "name": {"$eq": name}, "kind": {"$eq": kind}, "labels": {"$eq": label},
        "gang_id": {"$eq": None},
    }  # fmt: skip


def test_members_of_a_gang_are_listed_only_when_it_is_named() -> None:
    assert q.jobs_filter(JobListQuery())["gang_id"] == {"$eq": None}
    assert q.jobs_filter(JobListQuery(gang_id="jg"))["gang_id"] == {"$eq": "jg"}


def test_events_are_after_a_sequence_and_of_one_job_or_owner() -> None:
    assert q.events_filter(EventQuery(after_seq=7)) == {"_id": {"$gt": 7}}
    assert q.events_filter(EventQuery(job_id="j", owner_id="u"))["owner_id"] == {"$eq": "u"}


def test_limits_are_kept_within_bounds() -> None:
    assert (q.bounded(0, 10), q.bounded(5, 10), q.bounded(99, 10)) == (1, 5, 10)


def test_a_page_takes_what_fits_and_at_least_one() -> None:
    assert q.fitting([5, 5, 5], most=11) == 2
    assert q.fitting([50, 5], most=11) == 1
    assert q.fitting([], most=11) == 0
