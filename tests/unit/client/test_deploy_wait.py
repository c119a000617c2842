"""`wherry deploy --wait`: until it answers, or until it is clear that it does not."""

import io
from collections.abc import Iterator

import pytest
from rich.console import Console

from client.wherry.cli import serving
from client.wherry.cli.console import Output
from client.wherry.serving import Deployment, ReplicaFailure


class Client:
    """Answers with one deployment after the other."""

    def __init__(self, *found: Deployment) -> None:
        self.found: Iterator[Deployment] = iter(found)

    def deployment(self, _: str) -> Deployment:
        return next(self.found)


def starting(failed: str | None = None) -> Deployment:
    failure = ReplicaFailure(job_id=failed, message=f"no model in {failed}") if failed else None
    return Deployment(deployment_id="j1", name="digits", status="starting", last_failure=failure)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    monkeypatch.setattr(serving, "_LOOK_S", 0)
    return io.StringIO()


def output(said: io.StringIO) -> Output:
    console = Console(file=said, width=200)
    return Output(json=False, out=console, err=console)


def test_each_failure_is_told_once_and_a_replica_that_runs_ends_the_waiting(said: io.StringIO) -> None:
    running = Deployment(deployment_id="j1", name="digits", status="running")
    client = Client(starting(), starting("ja"), starting("ja"), starting("jb"), running)
    assert serving.until_running(client, "j1", output(said)) is running
    assert said.getvalue().splitlines() == [
        "replica ja has failed: no model in ja", "replica jb has failed: no model in jb"
    ]  # fmt: skip


def test_after_three_failures_in_a_row_it_is_given_up(said: io.StringIO) -> None:
    found = serving.until_running(Client(starting("ja"), starting("jb"), starting("jc")), "j1", output(said))
    assert found.status == "starting"
    assert "wherry deployments update digits MODEL" in said.getvalue()
