"""Data brought along: datasets, artifacts, files from the web and what other jobs left, through the front door."""

from pathlib import Path
from typing import Any

from tests.e2e.stack import Stack, wherry_json, zip_of
from tests.integration.gateway_stack import new_id
from tests.integration.web_server import Web

LOOK = 'cd "$WHERRY_INPUTS" && '


def printed(stack: Stack, command: str, inputs: dict[str, Any]) -> str:
    """Return what a job with these inputs prints."""
    job_id = stack.submit(stack.spec(LOOK + command, inputs=inputs))
    job = stack.wait_end(job_id)
    assert job["state"] == "succeeded", stack.why_not(job_id)
    return stack.output(job_id, "_stdout.txt").decode()


def test_a_folder_becomes_a_dataset_that_jobs_read_file_by_file(stack: Stack, tmp_path: Path) -> None:
    name, folder = new_id("set"), tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("one\n")
    (folder / "deep" / "b.txt").write_text("two\n")
    made = wherry_json(stack, "datasets", "put", name, str(folder), "--description", "Two lines", "--shared")
    assert (made["version"], made["visibility"], made["is_new"]) == (1, "shared", True)
    again = wherry_json(stack, "datasets", "put", name, str(folder))
    assert (again["version"], again["is_new"], again["visibility"]) == (1, False, "shared")
    [listed] = wherry_json(stack, "datasets", "list", "two", name)["datasets"]
    assert listed["sha256"] == made["sha256"]

    inputs = {"data": f"dataset:{name}", "raw": {"source": f"dataset:{name}@1", "unpack": False}}
    said = printed(stack, "cat data/a.txt data/deep/b.txt && test -f raw && wc -c < raw", inputs).split()
    assert said == ["one", "two", str(made["size"])]

    (folder / "a.txt").write_text("three\n")
    assert wherry_json(stack, "datasets", "put", name, str(folder))["version"] == 2
    assert printed(stack, "cat old/a.txt new/a.txt", {"old": f"dataset:{name}@1", "new": f"dataset:{name}"}) == (
        "one\nthree\n"
    )
    target = tmp_path / "back.zip"
    assert wherry_json(stack, "datasets", "get", f"{name}@1", "-o", str(target))["sha256"] == made["sha256"]
    assert target.stat().st_size == made["size"]
    wherry_json(stack, "datasets", "rm", name)
    assert stack.http.get(f"/datasets/{name}").status_code == 404


def test_an_artifact_is_an_input_as_it_is(stack: Stack) -> None:
    body = zip_of({"x": "packed"})
    stored = stack.http.put("/artifacts", content=body, params={"name": "some.zip"}).json()
    source = f"artifact:{stored['artifact_id']}"
    inputs = {"raw": {"source": source, "unpack": False}, "open": source}
    assert printed(stack, "sha256sum raw | cut -c 1-64 && cat open/x", inputs) == f"{stored['sha256']}\npacked"


def test_a_file_from_the_web_is_an_input_and_what_is_not_there_is_said(stack: Stack, web: Web) -> None:
    web.files["/e2e/labels.csv"] = b"a,b\n1,2\n"
    web.files["/e2e/pack.zip"] = zip_of({"in/side": "of it"})
    inputs = {"labels": web.url("/e2e/labels.csv"), "pack": web.url("/e2e/pack.zip?token=1")}
    assert printed(stack, "cat labels pack/in/side", inputs) == "a,b\n1,2\nof it"
    job_id = stack.submit(stack.spec("true", inputs={"x": web.url("/e2e/none")}))
    job = stack.wait_end(job_id)
    assert (job["state"], job["error"]["reason"]) == ("failed", "input_missing")
    assert web.url("/e2e/none") in job["error"]["message"]
    assert "404" in job["error"]["message"]


def test_what_a_job_left_becomes_a_dataset_for_the_next(stack: Stack, tmp_path: Path) -> None:
    name = new_id("set")
    first = stack.submit(stack.spec('mkdir "$WHERRY_OUTPUTS/model" && echo weights > "$WHERRY_OUTPUTS/model/w.bin"'))
    assert stack.wait_end(first)["state"] == "succeeded"
    made = wherry_json(stack, "datasets", "put", name, f"job:{first}/model/w.bin")
    assert (made["version"], made["size"]) == (1, 8)
    assert printed(stack, "cat w", {"w": f"dataset:{name}"}) == "weights\n"
