"""Seed 001 as its people work: a node joins a cluster by a small file, and jobs addressed to the cluster run there."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from shared.permissions import node_user
from tests.e2e.conftest import EDGE
from tests.e2e.stack import ROOT, Stack, until, wherry

EXAMPLE = ROOT / "examples" / "linear-regression"


@pytest.fixture(scope="module")
def edge(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The node as the API shows it: its agent has a file with the server's address, a name, tags and a cluster."""
    folder = tmp_path_factory.mktemp("edge")
    ports = json.loads((stack.home / "ports.json").read_text())
    (folder / "controller").write_text(f"127.0.0.1:{ports['nats']}\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("WHERRY_")} | {
        "WHERRY_NATS_USER": node_user(EDGE),
        "WHERRY_NATS_PASSWORD": json.loads((stack.home / "nats" / "passwords.json").read_text())[node_user(EDGE)],
        "WHERRY_NODE_ID": EDGE,
        "WHERRY_STACK_ID": json.loads((stack.home / "run.json").read_text())["stack_id"],
        "WHERRY_RUNTIMES": stack.runtime,
    }
    command = [sys.executable, "-m", "services.node_agent", "--config", str(folder / "controller")]
    command += ["--worker-name", "camera-7", "--tags", "camera,arm", "--cluster", "edge", "--data-dir", str(folder)]
    with (stack.home / "logs" / "node_agent@edge-1.log").open("ab") as log:
        agent = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    try:
        yield until(lambda: (node := stack.node(EDGE)).get("tags") and node, "the node joins")
        agent.send_signal(signal.SIGUSR1)  # it leaves for good: other tests know of one node
        agent.wait(60)
        until(lambda: stack.node(EDGE).get("condition") == "left", "the node leaves")
        stack.http.delete(f"/nodes/{EDGE}").raise_for_status()
        until(lambda: not stack.node(EDGE), "the node is forgotten")
    finally:
        agent.kill()


def test_a_node_is_in_the_cluster_that_it_names_and_says_what_it_has(stack: Stack, edge: dict[str, Any]) -> None:
    assert (edge["name"], edge["cluster"], edge["tags"]) == ("camera-7", "edge", ["camera", "arm"])
    clusters = {one["name"]: one for one in stack.http.get("/clusters").json()["clusters"]}
    assert [node["id"] for node in clusters["edge"]["nodes"]] == [EDGE]
    assert clusters["edge"]["online"] == 1
    assert "edge" in wherry(stack, "clusters").stdout


def test_a_person_hands_in_the_example_to_a_cluster_and_reads_what_it_printed(
    stack: Stack, edge: dict[str, Any], tmp_path: Path
) -> None:
    del edge
    spec = json.loads((EXAMPLE / "job.json").read_text()) | {"command": "sh ./run.sh", "params": {"pace": 0}}
    spec |= (
        {"image": "wherry/python-base:latest"} if stack.runtime == "docker" else {"runtime": "process", "image": None}
    )
    (tmp_path / "job.json").write_text(json.dumps({name: value for name, value in spec.items() if value is not None}))
    ran = wherry(stack, "submit", str(EXAMPLE), "--spec", str(tmp_path / "job.json"), "--cluster", "edge", "--follow")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    [job] = stack.http.get("/jobs", params={"limit": 1}).json()["jobs"]
    assert job["node"] == EDGE
    assert "rmse" in stack.output(job["job_id"], "_stdout.txt").decode()
    assert set(json.loads(stack.output(job["job_id"], "metrics.json"))) >= {"rmse", "r2"}


def test_a_machine_hands_in_a_zip_and_a_command_to_the_cluster_or_to_a_tag(
    stack: Stack, edge: dict[str, Any], tmp_path: Path
) -> None:
    del edge
    source = tmp_path / "source.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr(
            "app/run.sh", "echo from $(pwd | sed 's|.*/||') > \"$WHERRY_OUTPUTS/said\"; cat ../deep/er/data\n"
        )
        archive.writestr("deep/er/data", "found\n")
    headers = {"Authorization": str(stack.http.headers["authorization"])}
    for placement in ({"cluster": "edge"}, {"tags": ["camera"]}, {"node": "camera-7"}):
        spec = stack.spec("cd app && sh ./run.sh", placement=placement)
        with source.open("rb") as body:
            answer = requests.post(
                f"http://127.0.0.1:{stack.port}/v1/jobs", headers=headers, timeout=60,
                data={"spec": json.dumps(spec)}, files={"source": ("source.zip", body, "application/zip")},
            )  # fmt: skip
        assert answer.status_code == 202, answer.text
        job = stack.wait_end(answer.json()["job_id"])
        assert (job["state"], job["node"]) == ("succeeded", EDGE), job
        assert stack.output(job["job_id"], "_stdout.txt") == b"found\n"
        assert stack.output(job["job_id"], "said") == b"from app\n"


def test_a_cluster_that_nobody_is_in_is_waited_for_and_said_to_be_empty(stack: Stack) -> None:
    job_id = stack.submit(stack.spec("true", placement={"cluster": "nowhere"}))
    waiting = until(lambda: (job := stack.job(job_id))["pending"] and job, "it waits")
    assert "cluster" in [reason["code"] for reason in waiting["pending"]]
    assert "nowhere" in stack.http.get(f"/jobs/{job_id}/explain").json()["text"]
    stack.http.post(f"/jobs/{job_id}/cancel")
    assert stack.wait_end(job_id)["state"] == "cancelled"
