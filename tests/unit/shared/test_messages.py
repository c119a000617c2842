"""What somebody else words or counts: a node with a broken clock or engine, or worse, harms nobody but itself."""

import json
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from shared.events import AttemptFinished, AttemptStarting, JobChanged, LogLine, MetricPoint
from shared.fleet import Heartbeat, NodeInfo
from shared.job import ATTEMPTS_KEPT, REMARKS_KEPT, Attempt, Failure, Job, Owner
from shared.spec import SPEC_BYTES_MAX, JobSpec
from shared.states import AttemptState, EndReason

AT = datetime(2026, 1, 1, tzinfo=UTC)
BROKER_BYTES_MAX = 1_000_000
#: The longest that a character can be as JSON.
WIDE = "\x01"


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (AttemptStarting, {"attempt": 1}),
        (AttemptFinished, {"attempt": 1, "state": "failed"}),
        (MetricPoint, {"name": "loss", "value": 1.0}),
    ],
)
def test_a_time_without_a_zone_is_refused_where_it_comes_in(message, fields) -> None:
    message.from_bytes(json.dumps({**fields, "at": "2026-01-01T00:00:00Z"}).encode())
    with pytest.raises(ValidationError, match="timezone"):
        message.from_bytes(json.dumps({**fields, "at": "2026-01-01T00:00:00"}).encode())


def test_a_line_of_output_has_a_zone_too() -> None:
    with pytest.raises(ValidationError, match="timezone"):
        LogLine.from_bytes(b'{"n":1,"t":"2026-01-01T00:00:00","x":"hello"}')


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_number_that_json_does_not_know_is_refused(number: str) -> None:
    with pytest.raises(ValidationError):
        MetricPoint.from_bytes(b'{"name":"loss","value":%s,"at":"2026-01-01T00:00:00Z"}' % number.encode())


@pytest.mark.parametrize(
    "capacity",
    [
        '{"cpus":1e999,"memory":1,"disk":1}',
        '{"cpus":1e300,"memory":1,"disk":1}',
        '{"cpus":-1,"memory":1,"disk":1}',
        '{"cpus":1,"memory":1' + 400 * "0" + ',"disk":1}',
        '{"cpus":1,"memory":1,"disk":-1}',
    ],
)
def test_a_heartbeat_with_impossible_amounts_is_refused(capacity: str) -> None:
    beat = (
        '{"node":{"id":"n1","name":"n1"},"session":"s","boot_id":"b","seq":1,"at":"2026-01-01T00:00:00Z","capacity":%s}'
    )
    Heartbeat.from_bytes((beat % '{"cpus":1,"memory":1,"disk":1}').encode())
    with pytest.raises(ValidationError):
        Heartbeat.from_bytes((beat % capacity).encode())


def test_whatever_nodes_say_a_job_fits_the_broker() -> None:
    endless = WIDE * 900_000
    failure = Failure(reason=EndReason.RUNTIME_ERROR, message=endless)
    report = AttemptFinished(
        attempt=1, at=AT, state=AttemptState.FAILED, error=failure, image_digest=endless, remarks=(endless,) * 50
    )
    attempt = Attempt(
        number=1, node="n1", state=AttemptState.FAILED, placed_at=AT, error=failure, image_digest=report.image_digest
    )
    spec = JobSpec(runtime="process", command="true", params={"text": "x" * (SPEC_BYTES_MAX - 200)})
    job = Job(
        id="j1",
        owner=Owner(id="u1", name="ada"),
        spec=spec,
        created_at=AT,
        updated_at=AT,
        attempts=(attempt,) * ATTEMPTS_KEPT,
        error=failure,
        remarks=report.remarks[:REMARKS_KEPT],
    )
    assert len(JobChanged(job=job).to_bytes()) < BROKER_BYTES_MAX * 3 / 4
    assert job.remarks[0].endswith("…")


def test_what_is_short_enough_stays_as_it_is() -> None:
    assert Failure(reason=EndReason.EXIT_CODE, message="exit code 3").message == "exit code 3"


def test_where_a_node_says_that_it_is_goes_to_all_members_of_its_gangs_and_is_cut() -> None:
    info = NodeInfo.model_validate({"id": "n1", "name": "n1", "address": "a" * 900_000, "engine_id": "e" * 900_000})
    assert len(info.to_bytes()) < 2000
