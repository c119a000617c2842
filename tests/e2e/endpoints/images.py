"""Workloads of images."""

import io
import zipfile
from typing import Any

from PIL import Image

from tests.e2e.documented import User
from tests.e2e.endpoints.things import Things, case
from tests.e2e.stack import until


@case("POST /v1/workloads")
def make_a_workload(user: User, things: Things) -> None:
    assert things.workload
    bare = user.ask("POST /v1/workloads", status=201).json()
    assert (bare["filter"], bare["status"], bare["filtered_images"]) == ("grayscale", "scheduling", [])
    things.stack.http.delete(f"/workloads/{bare['workload_id']}")
    wrong = user.ask("POST /v1/workloads", json={"filter": "sepia"}, status=422).json()
    assert wrong["errors"][0]["field"] == "filter"


@case("GET /v1/workloads")
def workloads(user: User, things: Things) -> None:
    found = user.ask("GET /v1/workloads", params={"limit": 500}).json()["workloads"]
    assert [one["workload_name"] for one in found if one["workload_id"] == things.workload] == ["endpoints"]


@case("POST /v1/images")
def give_an_image(user: User, things: Things) -> None:
    assert things.image
    form: dict[str, Any] = {"data": {"workload_id": things.workload}, "files": {"image": ("a.png", b"no picture")}}
    assert user.ask("POST /v1/images", **form, status=422).json()["code"] == "not_an_image"
    user.ask("POST /v1/images", json={}, status=415)


@case("GET /v1/images/{image_id}")
def fetch_an_image(user: User, things: Things) -> None:
    gray = user.ask("GET /v1/images/{image_id}", things.filtered)
    with Image.open(io.BytesIO(gray.content)) as image:
        assert (image.mode, image.size, gray.headers["content-type"]) == ("L", (8, 8), "image/png")
    red = user.ask("GET /v1/images/{image_id}", things.filtered, params={"type": "original"})
    with Image.open(io.BytesIO(red.content)) as image:
        assert image.getpixel((0, 0)) == (200, 30, 60)


@case("GET /v1/workloads/{workload_id}")
def see_a_workload(user: User, things: Things) -> None:
    assert things.filtered
    found = user.ask("GET /v1/workloads/{workload_id}", things.workload).json()
    assert (found["status"], found["filtered_images"]) == ("completed", [things.filtered])


@case("GET /v1/workloads/{workload_id}/results")
def results_of_a_workload(user: User, things: Things) -> None:
    assert things.filtered
    answer = user.ask("GET /v1/workloads/{workload_id}/results", things.workload)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == [f"{things.workload}/0001-red.png"]


@case("POST /v1/workloads/{workload_id}/rerun")
def rerun_a_workload(user: User, things: Things) -> None:
    operation = "POST /v1/workloads/{workload_id}/rerun"
    assert things.filtered
    assert user.ask(operation, things.workload, status=409).json()["code"] == "conflict"
    spoilt = user.ask("POST /v1/workloads", json={"workload_name": "spoilt"}).json()["workload_id"]
    things.ends.append(lambda: things.stack.http.delete(f"/workloads/{spoilt}"))
    held = io.BytesIO()
    Image.new("RGB", (64, 64), (1, 2, 3)).save(held, "PNG")
    form: dict[str, Any] = {"data": {"workload_id": spoilt}, "files": {"data": ("cut.png", held.getvalue()[:-60])}}
    user.ask("POST /v1/images", **form)
    show = "GET /v1/workloads/{workload_id}"
    until(lambda: user.ask(show, spoilt).json()["failed_images"], "the image has failed")
    assert user.ask(operation, spoilt, status=202).json()["workload_id"] == spoilt


@case("DELETE /v1/workloads/{workload_id}")
def end_a_workload(user: User, things: Things) -> None:
    assert things.filtered
    told = user.ask("DELETE /v1/workloads/{workload_id}", things.workload, status=202).json()
    assert told["workload_id"] == things.workload
    show = "GET /v1/workloads/{workload_id}"
    until(lambda: user.ask(show, things.workload).json()["closed"], "it takes no more")
