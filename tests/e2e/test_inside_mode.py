"""The inside mode of the ML job worker: the program fetches, unpacks, packs and sends by itself."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from tests.e2e.stack import ROOT, Stack, zip_of

EXAMPLE = ROOT / "examples" / "inside-mode"
SMALL = {"memory": "256MiB", "disk": "64MiB"}
FETCHES = """
import io, json, os, urllib.request, zipfile
def get(path):
    headers = {"Authorization": "Bearer " + open(os.environ["WHERRY_TOKEN_FILE"]).read()}
    return urllib.request.urlopen(urllib.request.Request(os.environ["WHERRY_API"] + path, headers=headers)).read()
assert not os.path.exists(os.environ["WHERRY_INPUTS"] + "/counts")
found = zipfile.ZipFile(io.BytesIO(get("/v1/job/inputs/counts")))
assert found.testzip() is None
print(*sorted(found.namelist()))
print(get("/v1/job/inputs/counts/letters/first.json").decode())
"""


def spec_of(stack: Stack, command: Any, **more: Any) -> dict[str, Any]:
    where = {"runtime": "process"} if stack.runtime == "process" else {"image": "wherry/python-base"}
    return {"command": command, "network": "api", "resources": SMALL, **where, **more}


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_program_fetches_unpacks_and_sends_by_itself_and_the_next_one_fetches_from_it(stack: Stack) -> None:
    texts = files_below(EXAMPLE / "data") | {"noise.bin": b"\xff\xfe\x00"}
    artifact = stack.http.put("/artifacts", content=zip_of(texts)).json()["artifact_id"]
    inputs = {"texts": {"source": f"artifact:{artifact}", "stage": False}}
    spec = json.loads((EXAMPLE / "job.json").read_text())
    spec = {key: value for key, value in spec.items() if key != "image"} | spec_of(stack, spec["command"])
    source = zip_of({"main.py": (EXAMPLE / "main.py").read_bytes()})
    first = stack.submit({**spec, "inputs": inputs}, source=source)
    job = stack.wait_end(first)
    assert job["state"] == "succeeded", (job, stack.output(first, "_stderr.txt"))
    assert stack.output(first, "_stdout.txt") == b"19 words in 3 files\n"
    assert json.loads(stack.output(first, "counts/letters/first.json"))["grind"] == 2
    assert json.loads(stack.output(first, "total.json"))["größe"] == 1
    assert "noise.bin is no text and was left out" in " ".join(job["remarks"])
    assert job["progress"]["fraction"] == 1
    whole = zipfile.ZipFile(io.BytesIO(stack.http.get(f"/jobs/{first}/outputs").content))
    assert {"counts/letters/first.json", "counts/second.json", "total.json"} <= set(whole.namelist())

    counts = {"source": f"job:{first}/counts", "stage": False}
    second = stack.submit(spec_of(stack, ["python3", "-c", FETCHES], inputs={"counts": counts}))
    job = stack.wait_end(second)
    assert job["state"] == "succeeded", (job, stack.output(second, "_stderr.txt"))
    names, one = stack.output(second, "_stdout.txt").decode().splitlines()
    assert names.split() == ["letters/", "letters/first.json", "second.json"]
    assert json.loads(one)["mills"] == 1


def test_what_cannot_have_the_network_api_is_refused_with_the_reason(stack: Stack) -> None:
    service = {"kind": "service", "service": {"port": 8000}}
    answer = stack.post_job(spec_of(stack, "true", **service))
    assert answer.status_code == 422
    assert "network" in answer.text
    inputs = {"x": {"source": "https://example.com/x", "stage": False}}
    answer = stack.post_job(spec_of(stack, "true", inputs=inputs) | {"network": "none"})
    assert answer.status_code == 422
    assert "stage" in answer.text
