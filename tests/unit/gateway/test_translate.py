import json
from datetime import UTC, datetime, timedelta
from typing import Any

from services.gateway.core import translate, translate_fleet
from shared.events import LogLine, MetricPoint, Progress
from shared.fleet import Capacity, NodeInfo, Usage
from shared.job import Attempt, BlobRef, Failure, GangMember, Job, OutputsRef, Owner, PendingReason
from shared.manifest import Entry
from shared.requests.administration import Counts
from shared.requests.jobs import EventPage, JobView, StoredEvent
from shared.requests.nodes import NodeView
from shared.requests.outputs import OutputPage
from shared.spec import JobSpec
from shared.states import AttemptState, EndReason, JobState, PendingCode

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRET = "whsec_" + "A" * 44
SPEC = JobSpec.model_validate(
    {
        "name": "n", "image": "i", "labels": ["l"],
        "notify": [{"webhook": {"url": "https://x.org", "secret": SECRET, "secret_ref": "s1"}}],
    }
)  # fmt: skip
JOB = Job(
    id="j1", owner=Owner(id="u1", name="anna"), spec=SPEC, state=JobState.FAILED, created_at=NOW, updated_at=NOW,
    ended_at=NOW, attempt=2, tries=2, error=Failure(reason=EndReason.EXIT_CODE, message="exit code 3"),
    outputs=OutputsRef(manifest=BlobRef(sha256="m", size=9), files=2, bytes=70), remarks=("skipped a link",),
    pending=(PendingReason(code=PendingCode.CPUS, nodes=2, message="too few CPUs"),),
    attempts=(
        Attempt(number=1, node="n1", state=AttemptState.LOST, placed_at=NOW),
        Attempt(
            number=2, node="n2", state=AttemptState.FAILED, placed_at=NOW, running_at=NOW + timedelta(seconds=1),
            exit_code=3,
        ),
    ),
)  # fmt: skip
VIEW = JobView(job=JOB, seq=5, progress=Progress(fraction=0.5, message="half", at=NOW))


def test_a_job_is_shown_with_all_that_became_of_it() -> None:
    shown = json.loads(translate.job(VIEW, with_spec=True).model_dump_json())
    assert shown["job_id"] == "j1"
    assert (shown["name"], shown["state"], shown["kind"], shown["owner"]) == ("n", "failed", "run", "anna")
    assert shown["node"] == "n2"
    assert (shown["progress"]["fraction"], shown["progress"]["message"]) == (0.5, "half")
    assert [(one["number"], one["state"], one["exit_code"]) for one in shown["attempts"]] == [
        (1, "lost", None),
        (2, "failed", 3),
    ]
    assert (shown["created_at"], shown["started_at"]) == ("2026-01-02T03:04:05Z", "2026-01-02T03:04:06Z")
    assert shown["pending"] == [{"code": "cpus", "nodes": 2, "message": "too few CPUs"}]
    assert shown["outputs"] == {"files": 2, "bytes": 70}
    assert shown["error"] == {"reason": "exit_code", "message": "exit code 3"}
    assert (shown["remarks"], shown["labels"]) == (["skipped a link"], ["l"])


def test_a_spec_is_shown_without_its_secrets() -> None:
    shown = translate.job(VIEW, with_spec=True).model_dump_json()
    assert "https://x.org" in shown
    assert SECRET not in shown
    assert "s1" not in shown


def test_an_ended_map_job_shows_no_workers_and_an_ended_gang_its_members() -> None:
    def shown(state: JobState, **spec: Any) -> int:
        member = GangMember(job_id="jw", role="worker", index=0, node="n1", state=JobState.RUNNING, placed_at=NOW)
        job = JOB.model_copy(update={"spec": JobSpec.model_validate(spec), "members": (member,), "state": state})
        return len(translate.job(JobView(job=job, seq=5), with_spec=False).members)

    mapped: dict[str, Any] = {"kind": "map", "image": "i", "command": "true", "map": {"open": True}}
    gang: dict[str, Any] = {
        "kind": "gang",
        "image": "i",
        "gang": {"roles": {"worker": {"count": 2, "command": "true"}}},
    }
    assert shown(JobState.RUNNING, **mapped) == 1
    assert shown(JobState.SUCCEEDED, **mapped) == 0
    assert shown(JobState.SUCCEEDED, **gang) == 1


def test_a_list_leaves_the_spec_out() -> None:
    assert translate.job(VIEW, with_spec=False).spec is None


def test_a_line_says_its_stream_in_words() -> None:
    shown = translate.line(LogLine(n=3, t=NOW, s="e", x="oops"))
    assert (shown.n, shown.stream, shown.text) == (3, "stderr", "oops")


def test_lines_that_are_missing_are_told_as_a_line() -> None:
    assert translate.lost_text(4, 4) == "[wherry: line 4 is missing]\n"
    assert translate.lost_text(4, 9) == "[wherry: lines 4 to 9 are missing]\n"


def test_a_value_is_shown_as_it_was_printed() -> None:
    assert translate.point(MetricPoint(name="loss", value=0.5, step=3, at=NOW)).value == 0.5


def test_events_are_json_and_the_cursor_is_the_last_sequence() -> None:
    page = EventPage(events=(StoredEvent(seq=7, event='{"id":"a"}'), StoredEvent(seq=9, event='{"id":"b"}')))
    shown = translate.events(page, 3)
    assert (shown.events, shown.cursor) == ([{"id": "a"}, {"id": "b"}], 9)
    assert translate.events(EventPage(), 3).cursor == 3


def test_an_entry_shows_size_and_digest_of_a_file() -> None:
    page = OutputPage(
        entries=(Entry(path="d", kind="dir"), Entry(path="f", blob=BlobRef(sha256="s", size=4))),
        cursor="f",
        skipped=("x",),
    )
    shown = translate.entries(page)
    assert [(one.path, one.kind, one.size, one.sha256) for one in shown.entries] == [
        ("d", "dir", 0, None),
        ("f", "file", 4, "s"),
    ]
    assert (shown.cursor, shown.skipped) == ("f", ["x"])


def test_what_a_node_runs_and_holds_is_for_administrators() -> None:
    node = NodeView(
        node=NodeInfo(id="n1", name="one"), capacity=Capacity(cpus=2, memory=10, disk=20), usage=Usage(),
        attempts=({"job_id": "j1", "attempt": 1, "state": "running"},), images=("secret/image",), seen_at=NOW,
        online=True,
    )  # fmt: skip
    assert translate_fleet.node(node, whole=True).images == ["secret/image"]
    shown = translate_fleet.node(node, whole=False)
    assert (shown.attempts, shown.images, shown.running) == (None, None, 1)


def test_the_status_counts_jobs_and_nodes() -> None:
    counts = Counts(
        jobs={"queued": 2, "running": 1}, nodes_online=1, nodes_total=3, conditions={"online": 1, "suspect": 2},
        duties={"draining": 1},
    )  # fmt: skip
    shown = translate.status(counts, ["j1"], "wherry", NOW)
    assert (shown.jobs.total, shown.nodes.online, shown.nodes.total, shown.active_workloads) == (3, 1, 3, ["j1"])
    assert (shown.nodes.suspect, shown.nodes.lost, shown.nodes.draining) == (2, 0, 1)
