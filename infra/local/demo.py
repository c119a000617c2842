"""The main job on the local stack: hand in a training, watch it, and check everything that it must leave."""

import base64
import email
import email.policy
import hashlib
import hmac
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Any, TypeVar

import docker.errors

from client.wherry import Client, End, Gap, Job, LogLine, Progress, WherryError
from infra.local import control
from infra.local.engine import engine
from infra.local.home import Home
from infra.local.processes import ROOT

EXAMPLE = ROOT / "examples" / "linear-regression"
BASE_IMAGE, PUBLIC_IMAGE = "wherry/python-base", "python:3.11-slim"
#: A notice that a notifier took and then ended comes again after a minute (shared/streams.py).
JOB_LIMIT_S, NOTICE_LIMIT_S = 600.0, 150.0
#: What every fit of these data reaches; one that learnt nothing is at 0.
R2_LEAST = 0.3
T = TypeVar("T")


class DemoError(Exception):
    """Something that the main job must leave is missing or wrong."""


@dataclass(frozen=True)
class Choice:
    """How the job runs. Without an image: as a plain process."""

    image: str | None
    why: str


def demo(home: Home) -> int:
    """Run the main job and say each step; return the exit code."""
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    try:
        _demo(home, say)
    except (DemoError, WherryError) as failed:
        say(f"FAILED: {failed}")
        say(f"logs: {home.root / 'logs'}")
        return 1
    return 0


def _demo(home: Home, say: Callable[[str], None]) -> None:
    say("starting wherry on this machine")
    control.up(home)
    credentials = json.loads(home.credentials.read_text())
    address = control.url(home)
    with Client(address) as client:
        client.login(credentials["user"], credentials["password"])
        choice = choose(client, say)
        how = f"in a container of {choice.image}" if choice.image else "as a plain process"
        say(f"the job runs {how}: {choice.why}")
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        mail_to = client.whoami().email
        job_id = client.submit(_spec(home, choice, secret, mail_to), EXAMPLE).job_id
        say(f"handed in {EXAMPLE.relative_to(ROOT)} as job {job_id}; what it prints:")
        _follow(client, job_id)
        job = client.wait(job_id, JOB_LIMIT_S)
        _expect(job.state == "succeeded", f"the job {job.state}: {job.error}")
        say(f"it {job.state} on node {job.node}")
        folder = home.root / "demo" / job_id
        client.download(job_id, folder)  # compares every file with the SHA-256 that the node took
        _results(folder, say)
        _notices(home, client, job, secret, mail_to, say)
    say("all is as it should be")
    print(
        f"\n  files      {folder}"
        f"\n  API        {address}/v1 (as {credentials['user']}, password in {home.credentials})"
        f"\n  documents  {address}/openapi.json and {address}/asyncapi.json"
        f"\n  the job    {address}/v1/jobs/{job_id}"
        f"\n  mail and webhooks that came: {home.inbox}"
        f"\n  stop it    make down\n"
    )


# --- container or process --------------------------------------------------------------------------------------------


def choose(client: Client, say: Callable[[str], None]) -> Choice:
    """Return how the job runs here, and why.

    Raises:
        DemoError: an image was asked for by name and is not to be had.

    """
    if os.environ.get("WHERRY_DEMO_RUNTIME") == "process":
        return Choice(None, "WHERRY_DEMO_RUNTIME asks for it")
    docker_engine = engine()
    if docker_engine is None:
        return Choice(None, f"no Docker engine answers{_where()}")
    if not any("docker" in (node.model_extra or {}).get("runtimes", ()) for node in client.nodes() if node.online):
        return Choice(None, "the node found no Docker engine when it started (make down, make up looks again)")
    if wanted := os.environ.get("WHERRY_DEMO_IMAGE"):
        if not _has(docker_engine, wanted) and (problem := _pull(docker_engine, wanted, say)):
            raise DemoError(f"WHERRY_DEMO_IMAGE={wanted} is not here and cannot be pulled: {problem}")
        return Choice(wanted, "WHERRY_DEMO_IMAGE names it")
    for image in (BASE_IMAGE, PUBLIC_IMAGE):
        if _has(docker_engine, image):
            return Choice(image, "Docker answers and has this image")
    problem = _pull(docker_engine, PUBLIC_IMAGE, say)
    if problem is None:
        return Choice(PUBLIC_IMAGE, "Docker answers and pulled it")
    say(f"{PUBLIC_IMAGE} cannot be pulled: {problem}")
    return _build(say)


def _where() -> str:
    host = os.environ.get("DOCKER_HOST")
    return f" at DOCKER_HOST={host}" if host else ""


def _has(client: docker.DockerClient, image: str) -> bool:
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        return False
    return True


def _pull(client: docker.DockerClient, image: str, say: Callable[[str], None]) -> str | None:
    """Pull *image*; return what went wrong, or None."""
    say(f"pulling {image}")
    try:
        client.images.pull(image)
    except (docker.errors.DockerException, OSError) as problem:
        return str(problem)
    return None


def _build(say: Callable[[str], None]) -> Choice:
    """Build an image from Debian's packages where that is possible."""
    script = ROOT / "infra/docker/build-base.sh"
    if os.geteuid() != 0 or not shutil.which("debootstrap") or not shutil.which("docker"):
        return Choice(None, "there is no image, and building one needs root, debootstrap and the docker command")
    say(f"building {BASE_IMAGE} from Debian's packages (about a minute)")
    done = subprocess.run([str(script), BASE_IMAGE], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return Choice(None, f"building {BASE_IMAGE} failed: {done.stderr.strip()[-300:]}")
    return Choice(BASE_IMAGE, "Docker answers, and it was built from Debian's packages")


# --- the job --------------------------------------------------------------------------------------------------------


def _spec(home: Home, choice: Choice, secret: str, mail_to: str | None) -> dict[str, Any]:
    spec = json.loads((EXAMPLE / "job.json").read_text())
    hook = control.running(home)["sinks"]["webhook_url"] + "demo"
    notify: list[dict[str, Any]] = [{"webhook": {"url": hook, "secret": secret}}]
    if mail_to:
        notify.append({"email": mail_to})
    spec |= {"notify": notify}
    if choice.image:
        return spec | {"image": choice.image, "runtime": "docker"}
    del spec["image"]
    return spec | {"runtime": "process"}


def _follow(client: Client, job_id: str) -> None:
    for item in client.follow(job_id):
        match item:
            case LogLine() if not item.text.startswith("::"):  # those come as progress and metrics
                print(f"           | {item.text}", flush=True)
            case Progress():
                print(f"           | {item.fraction:4.0%} {item.message}", flush=True)
            case Gap():
                print("           | … some lines were lost on the way; the stored log has them", flush=True)
            case End():
                return
            case _:
                continue


def _results(folder: Path, say: Callable[[str], None]) -> None:
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    say(f"downloaded {', '.join(map(str, files))}")
    for name in ("model.json", "metrics.json"):
        _expect((folder / name).is_file(), f"the job left no {name}")
    metrics = json.loads((folder / "metrics.json").read_text())
    _expect(R2_LEAST < metrics["r2"] < 1, f"the model learnt nothing: {metrics}")
    say("the model: " + ", ".join(f"{name} {value}" for name, value in metrics.items() if not isinstance(value, dict)))


def _notices(
    home: Home, client: Client, job: Job, secret: str, mail_to: str | None, say: Callable[[str], None]
) -> None:
    def told() -> str:
        found = client.notifications(job.job_id)
        return "; ".join(f"{one.kind}: {one.state}, tries: {one.tries} ({one.detail})" for one in found) or "nothing"

    hook = _until(lambda: _webhook(home, job.job_id), "the webhook", told)
    _expect(signed(hook["headers"], hook["body"], secret), "the webhook's signature does not verify")
    event = json.loads(hook["body"])
    say(f"a webhook came: {event['type']}, and its signature verifies")
    if not mail_to:
        say("no mail: the administrator has no address")
    elif os.environ.get("WHERRY_SMTP_HOST"):
        _until(lambda: _delivered(client, job.job_id), f"the mail to {mail_to}", told)
        say(f"a mail was taken by {os.environ['WHERRY_SMTP_HOST']} for {mail_to}")
    else:
        mail = _until(lambda: _mail(home, job.job_id), f"the mail to {mail_to}", told)
        say(f"a mail came: {mail['subject']} (to {mail['to']})")


def signed(headers: dict[str, str], body: str, secret: str) -> bool:
    """Whether a webhook carries a signature of the Standard Webhooks scheme made with *secret* (``whsec_…``)."""
    known = {name.lower(): value for name, value in headers.items()}
    text = f"{known.get('webhook-id')}.{known.get('webhook-timestamp')}.{body}".encode()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    right = "v1," + base64.b64encode(hmac.digest(key, text, hashlib.sha256)).decode()
    return any(hmac.compare_digest(right, given) for given in known.get("webhook-signature", "").split())


def _webhook(home: Home, job_id: str) -> dict[str, Any] | None:
    found = (json.loads(file.read_text()) for file in sorted(home.inbox.glob("*.json")))
    return next((hook for hook in found if job_id in hook["body"]), None)


def _mail(home: Home, job_id: str) -> EmailMessage | None:
    for file in sorted(home.inbox.glob("*.eml")):
        mail = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
        if job_id in str(mail["subject"]) or job_id in mail.as_string():
            return mail
    return None


def _delivered(client: Client, job_id: str) -> bool | None:
    return any(n.kind == "email" and n.state == "delivered" for n in client.notifications(job_id)) or None


def _until(look: Callable[[], T | None], what: str, told: Callable[[], str]) -> T:
    """Return what *look* finds in another system, which nobody announces; *told* is what wherry says of it."""
    limit = time.monotonic() + NOTICE_LIMIT_S
    while (found := look()) is None:
        if time.monotonic() > limit:
            raise DemoError(f"{what} did not come in {NOTICE_LIMIT_S:g} s; wherry says of its notices: {told()}")
        time.sleep(0.2)
    return found


def _expect(fact: bool, otherwise: str) -> None:  # noqa: FBT001 - the fact is what it is about
    if not fact:
        raise DemoError(otherwise)
