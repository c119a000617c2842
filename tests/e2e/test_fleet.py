"""What administrators do with nodes and quotas, and what a job is told of its place, on a whole stack."""

from typing import Any

from tests.e2e.stack import Stack, until, wherry

NODE = "local"


def plan(stack: Stack, spec: dict[str, Any]) -> dict[str, Any]:
    """Ask until the scheduler knows the node: it may have begun anew in the test before."""

    def answered() -> dict[str, Any] | None:
        answer = stack.http.post("/jobs/plan", json=spec)
        assert answer.status_code in {200, 503}, answer.text
        return answer.json() if answer.status_code == 200 and answer.json()["nodes_considered"] else None

    return until(answered, "a plan")


def node(stack: Stack) -> dict[str, Any]:
    return stack.http.get(f"/nodes/{NODE}").json()


def test_a_plan_keeps_nothing_and_says_where_or_why_not(stack: Stack) -> None:
    fits = plan(stack, stack.spec("true", name="only-planned"))
    assert (fits["would_start"], fits["node"]) == (True, NODE), fits
    too_large = plan(stack, stack.spec("true", resources={"cpus": 4000, "memory": "128MiB"}))
    assert (too_large["would_start"], too_large["never"]) == (False, True), too_large
    assert [reason["code"] for reason in too_large["reasons"]] == ["cpus"]
    assert too_large["closest"][0]["node"] == NODE
    change = too_large["suggestion"]["set"]["resources.cpus"]
    assert plan(stack, stack.spec("true", resources={"cpus": change, "memory": "128MiB"}))["never"] is False
    assert stack.http.get("/jobs", params={"name": "only-planned"}).json()["jobs"] == []


def test_a_job_follows_another_and_gets_what_it_left(stack: Stack) -> None:
    gate = stack.submit(stack.spec("sleep 600"))
    make = 'mkdir -p "$WHERRY_OUTPUTS/out"; echo 42 > "$WHERRY_OUTPUTS/out/n"'
    first = stack.submit(stack.spec(make, needs=[{"job": gate, "on": "always"}]))
    second = stack.submit(
        stack.spec('cat "$WHERRY_INPUTS/data/n" > "$WHERRY_OUTPUTS/copy"', inputs={"data": f"job:{first}/out"})
    )
    third = stack.submit(stack.spec("exit 1", needs=[second]))
    last = stack.submit(stack.spec("true", needs=[{"job": third, "on": "always"}, {"job": first, "on": "ok"}]))
    try:
        waiting = until(lambda: (job := stack.job(second))["pending"] and job, "the second waits")
        assert [reason["code"] for reason in waiting["pending"]] == ["needs"]
        assert first in stack.http.get(f"/jobs/{second}/explain").json()["text"]
    finally:
        stack.http.post(f"/jobs/{gate}/cancel")
    assert [stack.wait_end(job)["state"] for job in (first, second, third, last)] == [
        "succeeded", "succeeded", "failed", "succeeded",
    ]  # fmt: skip
    assert stack.output(second, "copy") == b"42\n"


def test_a_drained_node_is_empty_and_its_job_goes_on_afterwards(stack: Stack) -> None:
    def said(*args: str) -> str:
        done = wherry(stack, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    job_id = stack.submit(stack.spec('[ "$WHERRY_ATTEMPT" -gt 1 ] || sleep 300'))
    stack.wait_state(job_id, "running")
    try:
        assert "is drained" in said("nodes", "drain", NODE, "--deadline", "1s", "--reason", "new disk", "--wait")
        assert (node(stack)["duty"], node(stack)["reason"]) == ("drained", "new disk")
        assert "new disk" in said("nodes")
        moved = stack.wait_state(job_id, "queued")
        assert moved["attempts"][-1]["error"]["reason"] == "node_drained"
        until(
            lambda: "node_cordoned" in [reason["code"] for reason in stack.job(job_id)["pending"]],
            "it waits for a node that gets work",
        )
    finally:
        said("nodes", "undrain", NODE, "--wait")
    ended = stack.wait_end(job_id)
    assert (ended["state"], ended["tries"], len(ended["attempts"])) == ("succeeded", 1, 2), ended
    duties = [line["what"] for line in node(stack)["history"] if line["what"] in {"draining", "drained", "active"}]
    assert duties[-3:] == ["draining", "drained", "active"]
    assert "attempt 2 succeeded" in said("show", job_id)


def test_a_quota_holds_jobs_back_and_lets_them_go(stack: Stack) -> None:
    try:
        stack.http.put("/users/me/quota", json={"running": 0}).raise_for_status()
        job_id = stack.submit(stack.spec("true"))
        why = until(
            lambda: (seen := stack.http.get(f"/jobs/{job_id}/explain").json()).get("reasons") and seen, "the reasons"
        )
        assert [reason["code"] for reason in why["reasons"]] == ["quota"], why
        assert stack.job(job_id)["state"] == "queued"
    finally:
        stack.http.delete("/users/me/quota").raise_for_status()
    assert stack.wait_end(job_id)["state"] == "succeeded"
