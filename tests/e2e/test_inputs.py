"""One job's outputs are the next one's inputs, through the front door, on all services."""

from typing import Any

from tests.e2e.stack import Stack, until, zip_of


def test_a_chain_of_jobs_hands_its_outputs_on(stack: Stack) -> None:
    make = 'sleep 1; mkdir -p "$WHERRY_OUTPUTS/parts/deep"; echo one > "$WHERRY_OUTPUTS/parts/a"'
    more = '; printf größe > "$WHERRY_OUTPUTS/parts/deep/ü"; echo beside > "$WHERRY_OUTPUTS/b"'
    first = stack.submit(stack.spec(make + more))
    inputs = {"parts": f"job:{first}/parts", "b": f"job:{first}/b"}
    join = 'cd "$WHERRY_INPUTS"; cat parts/a parts/deep/ü b > "$WHERRY_OUTPUTS/joined"'
    second = stack.submit(stack.spec(join, inputs=inputs))  # at once: it waits for the first
    third = stack.submit(stack.spec('cat "$WHERRY_INPUTS/all/joined"', inputs={"all": f"job:{second}"}))
    assert stack.wait_end(third)["state"] == "succeeded", stack.job(third)
    assert stack.output(third, "_stdout.txt").decode() == "one\ngrößebeside\n"


def test_an_input_that_the_other_job_did_not_leave_is_said_to_be_missing(stack: Stack) -> None:
    first = stack.submit(stack.spec("true"))
    second = stack.submit(stack.spec("true", inputs={"x": f"job:{first}/no/such"}))
    job = stack.wait_end(second)
    assert (job["state"], job["error"]["reason"]) == ("failed", "input_missing")
    assert "no/such" in job["error"]["message"]


def test_an_artifact_is_brought_once_by_a_prefetch_and_found_by_every_job_that_wants_it(stack: Stack) -> None:
    answer = stack.http.put("/artifacts", content=zip_of({"deep/a": "inner"}))
    artifact = answer.json()["artifact_id"]
    [node] = stack.http.get("/nodes").json()["nodes"]
    asked = stack.http.post(f"/nodes/{node['id']}/prefetch", json={"what": f"artifact:{artifact}"})
    assert asked.status_code == 202, asked.text

    def kept() -> list[dict[str, Any]]:
        shown = stack.http.get(f"/nodes/{node['id']}").json()
        found = [one for one in shown["inputs"] if one["key"] == f"{answer.json()['sha256']}-unpacked"]
        return [] if shown["prefetches"] else found

    [held] = until(kept, "prefetched")
    assert held["bytes"] == len("inner")
    read = 'cat "$WHERRY_INPUTS/data/deep/a"'
    for _ in range(2):
        job_id = stack.submit(stack.spec(read, inputs={"data": f"artifact:{artifact}"}))
        job = stack.wait_end(job_id)
        assert job["state"] == "succeeded", job
        assert stack.output(job_id, "_stdout.txt") == b"inner"
    history = stack.http.get(f"/nodes/{node['id']}").json()["history"]
    assert [line["what"] for line in history if "prefetch" in line["what"]][-2:] == ["prefetch", "prefetched"]
