"""The main job through the stack in containers, as a user hands it in, and a look at all that it must leave."""

import csv
import email.message
import email.policy
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from client.wherry import Client, Job, LogLine
from infra.compose.images import PUBLIC, REPOSITORY
from infra.compose.prepare import Prepared, admin_email
from infra.compose.stack import Say, compose

EXAMPLE = REPOSITORY / "examples/linear-regression"
#: The receiver of docker-compose.yml, as the notifier sees it, and where it keeps what came.
WEBHOOK_URL, INBOX = "http://sinks:8025/wherry", "/data/inbox"
NODE_LIMIT_S, JOB_LIMIT_S, NOTICE_LIMIT_S = 60, 300, 60
#: What every fit of these data reaches; one that learnt nothing is at 0.
R2_LEAST = 0.3
T = TypeVar("T")


class SmokeError(Exception):
    """Something that the main job must leave is not there, or is wrong."""


def smoke(home: Path, stack: Prepared, environment: Mapping[str, str], say: Say) -> None:
    """Try the walls, run the main job, and check its state, output, files, mail and webhook.

    Args:
        home: the folder of the stack's files.
        stack: its credentials and its Python image, which the engine has.
        environment: where the admin's address may be set.
        say: told of each step.

    Raises:
        SmokeError: something is missing or wrong.
        WherryError: the gateway said no.

    """
    _check_walls(home, say)
    known = json.loads(stack.credentials.read_text())
    with Client(known["url"]) as wherry:
        wherry.login(known["user"], known["password"])
        node = _until(lambda: next((node for node in wherry.nodes() if node.online), None), "a node", NODE_LIMIT_S)
        say(f"node {node.name} is there")
        address = admin_email(environment)
        job = _run(wherry, _spec(stack.variable("WHERRY_PYTHON_IMAGE") or PUBLIC["WHERRY_PYTHON_IMAGE"], address), say)
        with tempfile.TemporaryDirectory() as folder:
            wherry.download(job.job_id, folder)  # compares every file with the SHA-256 that the node took
            _check_files(Path(folder), say)
        _check_notices(home, job, address, say)


def _check_walls(home: Path, say: Say) -> None:
    """MongoDB is tried by its address, not by its name, which the others do not even know."""

    def mongo_from(service: str) -> str:
        return compose(home, "exec", "-T", service, "python", "-c", _TRY, address, "27017").strip()

    address = compose(home, "exec", "-T", "storage", "python", "-c", _LOOK_UP, "mongo").strip()
    _expect(mongo_from("storage") == "open", "storage does not reach MongoDB")
    for service in ("gateway", "scheduler", "notifier", "node-agent"):
        _expect(mongo_from(service) == "shut", f"{service} reaches MongoDB")
    say("MongoDB is reached by storage alone")


_LOOK_UP = "import socket, sys; print(socket.gethostbyname(sys.argv[1]))"
_TRY = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 1).close()
    print("open")
except OSError:
    print("shut")
"""


def _spec(image: str, address: str) -> dict[str, Any]:
    spec = json.loads((EXAMPLE / "job.json").read_text())
    return spec | {"image": image, "notify": [{"email": address}, {"webhook": {"url": WEBHOOK_URL}}]}


def _run(wherry: Client, spec: Mapping[str, Any], say: Say) -> Job:
    """Hand in the example, hear it run, return it ended."""
    job_id = wherry.submit(spec, EXAMPLE).job_id
    say(f"job {job_id}")
    lines = [item.text for item in wherry.follow(job_id) if isinstance(item, LogLine)]
    job = wherry.wait(job_id, JOB_LIMIT_S)
    say(f"{job.state}, {len(lines)} lines of output")
    _expect(job.state == "succeeded", f"the job {job.state}: {job.error}; it printed {lines[-20:]}")
    _expect(any("rmse" in line for line in lines), f"its output did not arrive: {lines}")
    _expect(bool(job.attempts), "it has no attempt")
    return job


def _check_files(folder: Path, say: Say) -> None:
    metrics = json.loads((folder / "metrics.json").read_text())
    _expect(R2_LEAST < metrics["r2"] < 1, f"it learnt nothing: {metrics}")
    _expect(bool(json.loads((folder / "model.json").read_text())), "the model is empty")
    with (folder / "predictions/test.csv").open() as file:
        rows = len(list(csv.DictReader(file)))
    _expect(rows == metrics["rows"], f"{rows} predictions for {metrics['rows']} rows")
    say(f"model with r2 {metrics['r2']:.3f}, {rows} predictions")


def _check_notices(home: Path, job: Job, address: str, say: Say) -> None:
    def arrived() -> tuple[str, dict[str, Any]] | None:
        mails, hooks = _inbox(home)
        mail = next((str(mail["subject"]) for mail in mails if job.job_id in mail.as_string()), None)
        hook = next((hook for hook in hooks if job.job_id in hook["body"]), None)
        return (mail, hook) if mail and hook else None

    subject, hook = _until(arrived, f"the mail to {address} and the webhook", NOTICE_LIMIT_S)
    names = {name.lower() for name in hook["headers"]}
    _expect({"webhook-id", "webhook-timestamp", "webhook-signature"} <= names, f"the webhook is not signed: {names}")
    say(f"mail: {subject}")
    say(f"webhook: {json.loads(hook['body'])['type']}")


def _inbox(home: Path) -> tuple[list[email.message.EmailMessage], list[dict[str, Any]]]:
    with tempfile.TemporaryDirectory() as folder:
        compose(home, "cp", f"sinks:{INBOX}/.", folder)
        found = sorted(Path(folder).iterdir())
        mails = [
            email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
            for file in found
            if file.suffix == ".eml"
        ]
        return mails, [json.loads(file.read_text()) for file in found if file.suffix == ".json"]


def _until(look: Callable[[], T | None], what: str, limit_s: float) -> T:
    """Return what *look* finds; it asks another system, which nobody announces."""
    limit = time.monotonic() + limit_s
    while (found := look()) is None:
        _expect(time.monotonic() < limit, f"{what} did not come in {limit_s:g} s")
        time.sleep(0.3)
    return found


def _expect(fact: bool, otherwise: str) -> None:  # noqa: FBT001 - the fact is what it is about
    if not fact:
        raise SmokeError(otherwise)
