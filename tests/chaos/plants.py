"""Bugs planted into a run that went well, each behind the back of wherry: the checks have to find every one."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Mapping

from shared.channels import JOBS
from shared.ids import new_id
from tests.chaos.checks import Evidence, Logged
from tests.chaos.field import IMAGE, Field
from tests.chaos.mix import Plan

Plant = Callable[[Field, Evidence], Awaitable[None]]


def _job(evidence: Evidence, *kinds: str, notify: bool = False) -> tuple[str, Plan, Logged]:
    """Return an ended job of one of *kinds* (none given: any)."""
    for job_id, plan in evidence.accepted.items():
        if (not kinds or plan.kind in kinds) and plan.notify >= notify and evidence.ends(job_id):
            return job_id, plan, evidence.ends(job_id)[0]
    raise LookupError(f"no job of kind {kinds} in this mix")


async def lost(field: Field, evidence: Evidence) -> None:
    """An acknowledged job vanishes from the log."""
    job_id, _, _ = _job(evidence, "sleep", "source")
    await field.bus.api(f"STREAM.PURGE.{JOBS}", {"filter": f"wherry.job.*.{job_id}.>"})


async def two_outcomes(field: Field, evidence: Evidence) -> None:
    """A job that succeeded fails as well."""
    job_id, _, end = _job(evidence, "output")
    await _publish(field, job_id, end, "failed")


async def wrong_end(field: Field, evidence: Evidence) -> None:
    """A job was to fail, and did not."""
    job_id, plan, _ = _job(evidence, "output")
    evidence.accepted[job_id] = Plan(plan.number, "fails", plan.key, plan.tag, plan.command, plan.size, "failed", 2)


async def wrong_view(field: Field, evidence: Evidence) -> None:
    """The gateway shows what is not so."""
    job_id, _, _ = _job(evidence, "cancel")
    evidence.views[job_id] = "running"


async def wrong_output(field: Field, evidence: Evidence) -> None:
    """A job has the output of the attempt before the one that counts."""
    job_id, plan, end = _job(evidence, "retry")
    evidence.outputs[job_id] = plan.output(end.job["attempt"] - 1)


async def started_twice(field: Field, evidence: Evidence) -> None:
    """A program that has ended is started once more under its attempt's name and labels."""
    job_id, _, end = _job(evidence, "output")
    if field.on_docker:
        before = field.starts()[job_id, end.job["attempt"]]
        await _run_container(field, job_id, end.job["attempt"], "node-of-nobody", "true")
        async with asyncio.timeout(60):  # the engine's events come a little later
            while field.starts()[job_id, end.job["attempt"]] == before:
                await asyncio.sleep(0.2)
    else:
        with field.starts_file.open("a") as out:
            out.write(f"{job_id} {end.job['attempt']}\n")


async def orphan(field: Field, evidence: Evidence) -> None:
    """A program runs of which no agent knows."""
    if field.on_docker:
        await _run_container(field, new_id("j"), 1, "node-of-nobody", "sleep 600")
        return
    env = {**os.environ, "WHERRY_JOB_ID": new_id("j"), "WHERRY_WORKSPACE": str(field.stack.home)}
    await asyncio.create_subprocess_exec("sleep", "100", env=env, start_new_session=True)


async def missed_notification(field: Field, evidence: Evidence) -> None:
    """Nobody was told of a job's end."""
    _, plan, _ = _job(evidence, notify=True)
    for file in (field.stack.home / "inbox").glob("*.json"):
        if json.loads(file.read_text())["path"].lstrip("/") == plan.hook_path:
            file.unlink()


async def notification_ids(field: Field, evidence: Evidence) -> None:
    """A notification was repeated under another id."""
    told = [plan.hook_path for plan in evidence.accepted.values() if plan.notify]
    for file in (field.stack.home / "inbox").glob("*.json"):
        kept = json.loads(file.read_text())
        if kept["path"].lstrip("/") == told[-1]:
            kept["headers"] = {
                name: "another" if name.lower() == "webhook-id" else value for name, value in kept["headers"].items()
            }
            file.with_name("planted.json").write_text(json.dumps(kept))
            return


async def dead_letter(field: Field, _: Evidence) -> None:
    """A message that no reader of job events can take in."""
    await field.bus.send("wherry.job.u0.j0.running", b"no event")
    async with asyncio.timeout(30):
        while not (await field.bus.api("STREAM.INFO.WHERRY_DLQ", {}))["state"]["messages"]:
            await asyncio.sleep(0.2)


async def stuck(field: Field, evidence: Evidence) -> None:
    """Storage does not come to what it should take in."""
    job_id, _, end = _job(evidence, "fails")
    pids = json.loads(field.run_file.read_text())["pids"]
    os.kill(pids["storage"], signal.SIGSTOP)
    await _publish(field, job_id, end, "remarked")


#: By the kind of violation that each must show as.
PLANTS: Mapping[str, Plant] = {
    "lost": lost,
    "two_outcomes": two_outcomes,
    "wrong_end": wrong_end,
    "wrong_view": wrong_view,
    "wrong_output": wrong_output,
    "started_twice": started_twice,
    "orphan": orphan,
    "missed_notification": missed_notification,
    "notification_ids": notification_ids,
    "dead_letter": dead_letter,
    "stuck": stuck,
}


async def _publish(field: Field, job_id: str, like: Logged, event: str) -> None:
    subject = f"wherry.job.{like.job['owner']['id']}.{job_id}.{event}"
    body = {
        "specversion": "1.0", "id": new_id("e"), "source": "/wherry/scheduler", "subject": job_id,
        "type": f"io.wherry.job.{event}.v1", "time": like.job["updated_at"],
        "data": {"job": {**like.job, "state": event if event == "failed" else like.job["state"]}},
    }  # fmt: skip
    await field.bus.send(subject, json.dumps(body).encode())
    last = await field.bus.last(JOBS, subject)
    while last is None:
        await asyncio.sleep(0.05)
        last = await field.bus.last(JOBS, subject)


async def _run_container(field: Field, job_id: str, attempt: int, node: str, command: str) -> None:
    labels = {
        "wherry.stack": field.stack_id, "wherry.node": node, "wherry.role": "job", "wherry.job": job_id,
        "wherry.attempt": str(attempt),
    }  # fmt: skip
    options = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
    remove = [] if command.startswith("sleep") else ["--rm"]
    process = await asyncio.create_subprocess_exec(
        "docker", "run", "-d", "--network", "none", *remove, *options, IMAGE, "sh", "-c", command,
        stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0
