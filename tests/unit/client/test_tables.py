"""What people read: a job's timeline, machines, explanations, quotas."""

import re
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from client.wherry import __version__, models
from client.wherry.cli import tables
from client.wherry.cli.timeline import Step, timeline

BEGUN = datetime(2026, 1, 2, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGUN + timedelta(seconds=seconds)


def read(shown: RenderableType) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(shown)
    return re.sub(r" +", " ", captured.get())


def job(**fields: Any) -> models.Job:
    return models.Job.model_validate({"job_id": "j1", "state": "queued", "created_at": BEGUN} | fields)


LOST = {
    "number": 1, "node": "n1", "state": "lost", "placed_at": at(10), "starting_at": at(11), "running_at": at(15),
    "ended_at": at(60), "error": {"reason": "node_lost", "message": "nothing was heard of n1"},
}  # fmt: skip
DONE = {
    "number": 2, "node": "n2", "state": "succeeded", "placed_at": at(70), "starting_at": at(70), "running_at": at(72),
    "finishing_at": at(100), "ended_at": at(103), "exit_code": 0,
}  # fmt: skip


def test_a_timeline_has_every_step_how_long_it_took_and_why():
    ended = job(state="succeeded", attempts=[LOST, DONE], ended_at=at(104))
    assert timeline(ended, at(1000)) == [
        Step(0, "10 s", "handed in, waits for a node"),
        Step(10, "1 s", "attempt 1 placed on n1"),
        Step(11, "4 s", "attempt 1 starts"),
        Step(15, "45 s", "attempt 1 runs"),
        Step(60, "10 s", "attempt 1 lost: nothing was heard of n1 (node_lost); waits for the next one"),
        Step(70, "0 s", "attempt 2 placed on n2"),
        Step(70, "2 s", "attempt 2 starts"),
        Step(72, "28 s", "attempt 2 runs"),
        Step(100, "3 s", "attempt 2 is over, what it left is brought home"),
        Step(103, "1 s", "attempt 2 succeeded"),
        Step(104, "", "succeeded"),
    ]


def test_what_goes_on_lasts_until_now_and_says_what_it_waits_for():
    waiting = job(pending=[{"code": "cpus", "nodes": 2, "message": "needs 64 cpus"}])
    assert timeline(waiting, at(30)) == [Step(0, "30 s", "handed in: needs 64 cpus")]
    pulling = job(state="starting", attempts=[DONE | {"state": "starting", "phase": "pull", "running_at": None,
                                                      "finishing_at": None, "ended_at": None}])  # fmt: skip
    assert timeline(pulling, at(100))[-1] == Step(70, "30 s", "attempt 2 starts: the image is pulled")
    failed = LOST | {"state": "failed", "exit_code": 3, "error": {"reason": "exit_code", "message": "it ended"}}
    resting = job(attempts=[failed], not_before=at(80))
    assert timeline(resting, at(70))[-1].what == (
        "attempt 1 failed with exit code 3: it ended (exit_code); the next one 20 s later at the earliest"
    )
    soon = job(attempts=[failed], not_before=at(60.5))
    assert timeline(soon, at(70))[-1].what.endswith("; waits for the next one")
    chained = job(state="cancelled", needs=[{"job": "j0"}])
    assert timeline(chained, at(1))[0].what == "handed in, waits for what it needs and for a node"
    assert timeline(models.Job(job_id="j", state="queued"), BEGUN) == []


def test_a_cancelled_job_says_when_and_why():
    cancelled = job(
        state="cancelled", cancel_requested_at=at(5), ended_at=at(6),
        error={"reason": "cancelled_by_user", "message": "anna asked for it"},
    )  # fmt: skip
    assert [step.what for step in timeline(cancelled, at(9))] == [
        "handed in, waits for a node",
        "a cancel was asked for",
        "cancelled: anna asked for it (cancelled_by_user)",
    ]


def test_a_job_shows_its_needs_its_remarks_and_when_it_is_tried_again():
    shown = read(
        tables.job(
            job(needs=[{"job": "j0", "on": "any"}], remarks=["n1 fell silent"], not_before=at(90), attempts=[LOST]),
            at(60),
        )
    )
    for text in ("needs j0 (however, but for a cancel)", "remark n1 fell silent", "next try in 30 s at the earliest"):
        assert text in shown


def test_machines_show_whether_they_get_work_and_why_not():
    node = models.Node.model_validate(
        {
            "id": "n1", "name": "box", "condition": "suspect", "duty": "draining", "reason": "new disk",
            "problem": "Docker is slow", "deadline": at(60), "running": 1, "capacity": {"cpus": 4, "memory": 2**30},
            "attempts": [{"job_id": "j1", "attempt": 2, "state": "running"}],
            "history": [{"at": BEGUN, "what": "draining", "by": "anna", "reason": "new disk"}],
        }
    )  # fmt: skip
    assert "box n1 suspect draining 4 1.0 GiB - 0 % 1 new disk; Docker is slow" in read(tables.nodes([node], BEGUN))
    whole = read(tables.node(node, BEGUN))
    for text in ("deadline in 1 min 00 s", "runs 1 attempt", "j1 2 running", "now draining anna new disk"):
        assert text in whole


def test_an_explanation_says_what_is_missing_and_what_to_change():
    why = models.Explanation.model_validate(
        {
            "state": "queued", "text": "It waits.", "ahead": 1, "queue_length": 5,
            "reasons": [{"code": "cpus", "nodes": 2, "message": "needs 64 cpus"}],
            "closest": [{"node": "n1", "name": "box", "lacks": [{"code": "cpus", "wanted": 8, "free": 4}]}],
            "suggestion": {"set": {"resources.cpus": 4}, "message": "ask for 4 cpus"},
        }
    )  # fmt: skip
    shown = read(tables.explanation(why, planned=False))
    for text in (
        "It waits.", "state queued", "waits for needs 64 cpus (2 nodes)", "closest box: cpus: wants 8, free 4",
        "queue 1 job before it, of 5", "try ask for 4 cpus (resources.cpus = 4)",
    ):  # fmt: skip
        assert text in shown
    for fields, verdict in (({"would_start": True, "node": "n1"}, "now"), ({"never": True}, "never"), ({}, "later")):
        planned = models.Explanation.model_validate({"state": "queued"} | fields)
        assert f"would start {verdict}" in read(tables.explanation(planned, planned=True))


def test_a_quota_shows_every_limit_and_what_is_held():
    limits = models.Limits(cpus=8, memory=64 * 2**30, queued=0)
    shown = read(tables.quota(models.Quota(user="anna", quota=limits, by_state={"queued": 2})))
    for text in ("memory 64.0 GiB", "cpus 8", "gpus no limit", "queued 0", "share 1", "jobs now 2 queued"):
        assert text in shown
    assert "limits none" in read(tables.quota(models.Quota(user="anna")))


def test_the_version_is_the_projects():
    project = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())
    assert project["project"]["version"] == __version__


def test_a_job_that_others_do_the_work_of_is_not_said_to_have_waited_for_a_node():
    ended = models.Job(job_id="j", state="succeeded", kind="map", created_at=at(0), ended_at=at(7))
    assert [one.what for one in timeline(ended, at(9))] == [
        "handed in; its members, listed below, have times of their own",
        "succeeded",
    ]
