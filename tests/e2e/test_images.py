"""Seed 003 as its user works: log in, make a workload, upload with `requests` and curl, poll, download."""

import io
import json
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image, ImageFilter

from tests.e2e.stack import Stack, until, wherry

FILTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "grayscale": lambda picture: picture.convert("L"),
    "blur": lambda picture: picture.filter(ImageFilter.GaussianBlur(2)),
}


def picture(number: int, format_: str = "PNG") -> bytes:
    """A picture unlike all others: each of them has its own shades and noise."""
    chance = random.Random(number)
    noise = Image.frombytes("RGB", (60, 40), chance.randbytes(60 * 40 * 3)).resize((120 + number, 80))
    shade = Image.new("RGB", noise.size, (number * 53 % 256, number * 97 % 256, number * 31 % 256))
    buffer = io.BytesIO()
    Image.blend(noise, shade, 0.5).save(buffer, format_)
    return buffer.getvalue()


def is_filtered(filter_: str, original: bytes, result: bytes) -> bool:
    """Whether *result* is what Pillow here makes of *original*; JPEG is lossy, so it may be off by a little."""
    with Image.open(io.BytesIO(original)) as before, Image.open(io.BytesIO(result)) as after:
        wanted = FILTERED[filter_](before)
        if (wanted.size, wanted.mode, before.format) != (after.size, after.mode, after.format):
            return False
        pairs = zip(wanted.tobytes(), after.tobytes(), strict=True)
        return max(abs(one - other) for one, other in pairs) <= (0 if after.format == "PNG" else 24)


class Seed:
    """Its seven endpoints, at the root."""

    def __init__(self, stack: Stack) -> None:
        self.url = f"http://127.0.0.1:{stack.port}"
        credentials = json.loads((stack.home / "credentials.json").read_text())
        self.auth = (credentials["user"], credentials["password"])
        answer = requests.post(f"{self.url}/login", auth=self.auth, timeout=90)
        answer.raise_for_status()
        self.token = answer.json()["token"]
        self.headers = {"Authorization": f"Bearer {self.token}"}

    def get(self, path: str, **params: str) -> requests.Response:
        return requests.get(f"{self.url}{path}", headers=self.headers, params=params, timeout=60)

    def post(self, path: str, **sent: Any) -> requests.Response:
        return requests.post(f"{self.url}{path}", headers=self.headers, timeout=60, **sent)

    def upload(self, workload_id: str, name: str, body: bytes) -> str:
        answer = self.post("/images", data={"workload_id": workload_id}, files={"data": (name, body)})
        answer.raise_for_status()
        return answer.json()["image_id"]

    def completed(self, workload_id: str, timeout: float = 240) -> dict[str, Any]:
        def reached() -> dict[str, Any] | None:
            found = self.get(f"/workloads/{workload_id}").json()
            return found if found["status"] == "completed" else None

        return until(reached, f"workload {workload_id} is completed", timeout)


@pytest.fixture
def seed(stack: Stack) -> Iterator[Seed]:
    seed = Seed(stack)
    yield seed
    for workload in seed.get("/v1/workloads").json()["workloads"]:  # no worker stays for a test that is over
        requests.delete(f"{seed.url}/v1/workloads/{workload['workload_id']}", headers=seed.headers, timeout=60)


@pytest.mark.parametrize("filter_", ["grayscale", "blur"])
def test_twelve_images_are_filtered_and_come_back_in_order(seed: Seed, filter_: str) -> None:
    made = seed.post("/workloads", json={"filter": filter_, "workload_name": f"twelve {filter_}"}).json()
    assert (made["status"], made["running_jobs"], made["filtered_images"]) == ("scheduling", 0, [])
    workload_id = made["workload_id"]
    assert workload_id in seed.get("/status").json()["active_workloads"]
    originals = [picture(at, "JPEG" if at % 3 == 0 else "PNG") for at in range(12)]
    ids = [seed.upload(workload_id, f"{at}.{'jpg' if at % 3 == 0 else 'png'}", one) for at, one in enumerate(originals)]

    done = seed.completed(workload_id)
    assert (done["running_jobs"], done["failed_images"]) == (0, [])
    assert len(done["filtered_images"]) == 12
    for original, image_id, filtered_id in zip(originals, ids, done["filtered_images"], strict=True):
        assert seed.get(f"/images/{image_id}").content == original
        assert seed.get(f"/images/{filtered_id}", type="original").content == original
        answer = seed.get(f"/images/{filtered_id}")
        assert answer.headers["content-type"] in ("image/png", "image/jpeg")
        assert is_filtered(filter_, original, answer.content), filtered_id
    with zipfile.ZipFile(io.BytesIO(seed.get(f"/v1/workloads/{workload_id}/results").content)) as archive:
        endings = [name.rpartition("/")[2] for name in archive.namelist()]
    assert endings == [f"{at + 1:04d}-{at}.{'jpg' if at % 3 == 0 else 'png'}" for at in range(12)]
    assert workload_id not in seed.get("/status").json()["active_workloads"]


def test_the_same_by_curl(seed: Seed, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def curl(*words: str) -> Any:
        done = subprocess.run(["curl", "-sS", *words], capture_output=True, check=True, timeout=60)
        return json.loads(done.stdout) if done.stdout else None

    token = curl("-u", ":".join(seed.auth), f"{seed.url}/login")["token"]
    bearer = ("-H", f"Authorization: Bearer {token}")
    workload_id = curl(*bearer, "-X", "POST", f"{seed.url}/workloads", "-d", "filter=blur")["workload_id"]
    file, result = tmp_path / "a.png", tmp_path / "result.png"
    file.write_bytes(picture(99))
    form = ("-F", f"image=@{file}", "-F", f"workload_id={workload_id}", "-F", "type=original")
    sent = curl(*bearer, *form, f"{seed.url}/images")
    assert (sent["workload_id"], sent["type"]) == (workload_id, "original")
    (filtered,) = seed.completed(workload_id)["filtered_images"]
    curl(*bearer, f"{seed.url}/images/{filtered}", "-o", str(result))
    assert is_filtered("blur", file.read_bytes(), result.read_bytes())
    assert curl(*bearer, "-X", "DELETE", f"{seed.url}/logout")["logout_message"]


def test_an_image_that_cannot_be_filtered_fails_alone_and_says_why(seed: Seed) -> None:
    workload_id = seed.post("/workloads").json()["workload_id"]
    broken = seed.upload(workload_id, "cut.png", picture(1)[:200])
    seed.upload(workload_id, "good.png", picture(2))
    done = seed.completed(workload_id)
    assert len(done["filtered_images"]) == 1
    ((failed_id, name, message),) = [(one["image_id"], one["name"], one["message"]) for one in done["failed_images"]]
    assert (failed_id, name) == (broken, "cut.png")
    assert "damaged" in message
    answer = seed.get(f"/images/f{broken[1:]}")
    assert (answer.status_code, answer.json()["code"]) == (409, "item_failed")
    again = seed.post(f"/v1/workloads/{workload_id}/rerun")
    assert again.status_code == 202, again.text
    assert [one["image_id"] for one in seed.completed(workload_id)["failed_images"]] == [broken]


def test_wherry_filter_brings_results_home_and_says_what_failed(stack: Stack, seed: Seed, tmp_path: Path) -> None:
    files = [tmp_path / f"{at}.png" for at in range(3)]
    for at, file in enumerate(files):
        file.write_bytes(picture(at))
    text = tmp_path / "notes.txt"
    text.write_text("this is no image, whatever it says")
    out = tmp_path / "out"
    done = wherry(stack, "filter", "blur", *files, text, "-o", out)
    assert done.returncode == 1, done.stderr
    assert "notes.txt" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png", "2.png"]
    for file in files:
        assert is_filtered("blur", file.read_bytes(), (out / file.name).read_bytes())
