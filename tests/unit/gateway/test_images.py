"""Image workloads as a view of map jobs: ids, words, and which bytes are an image."""

import io
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image

from images.filters.registry import FILTERS
from services.gateway.core import images
from shared.errors import WherryError
from shared.ids import new_id
from shared.job import GangMember, ItemCounts, Job, Owner
from shared.states import JobState

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def workload(state: JobState = JobState.RUNNING, items: ItemCounts | None = None, workers: int = 0) -> Job:
    member = GangMember(job_id="j2", role="worker", index=0, node="n1", state=JobState.RUNNING, placed_at=NOW)
    return Job(
        id="j1", owner=Owner(id="u1", name="anna"), spec=images.spec("w", "blur", images.Program("wherry/filters"), 8),
        state=state, created_at=NOW, updated_at=NOW, items=items, members=(member,) * workers,
    )  # fmt: skip


def test_the_filters_are_those_of_the_image():
    from images.filters import pictures  # noqa: F401, PLC0415 # pyright: ignore[reportUnusedImport] - registers them

    assert images.filters_in(Path("images/filters/filters.py").read_text("utf-8")) == tuple(FILTERS)


def test_a_filter_is_a_function_that_is_marked_as_one_and_no_other():
    source = "@picture_filter\ndef sepia(picture): ...\ndef helper(): ...\n@cache\n@picture_filter\ndef edges(p): ...\n"
    assert images.filters_in(source) == ("sepia", "edges")


@pytest.mark.parametrize(
    "format_",
    ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "JPEG2000", "AVIF", "DDS", "SGI", "PCX", "QOI"],
)
def test_what_pillow_writes_is_an_image(format_: str):
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 40)).save(buffer, format_)
    assert images.format_of(buffer.getvalue()[: images.HEAD_BYTES]) is not None


@pytest.mark.parametrize(
    "body", [b"", b"%PDF-1.7", b"#!/bin/sh", b"PK\x03\x04", b"P6x", b"<svg xmlns=", b"GIF88a", b"\x7fELF"]
)
def test_what_is_no_image_is_none(body: bytes):
    assert images.format_of(body) is None


def test_a_result_has_the_id_of_its_original_but_for_one_letter():
    item_id = new_id("i")
    filtered = images.image_id(item_id, "filtered")
    assert images.item_of(item_id) == (item_id, "original")
    assert images.item_of(filtered) == (item_id, "filtered")
    assert filtered != item_id
    for other in ("", "i", new_id("j"), item_id + "x"):
        assert images.item_of(other) is None


@pytest.mark.parametrize(
    ("job", "word", "running"),
    [
        (workload(JobState.QUEUED), "scheduling", 0),
        (workload(JobState.QUEUED, ItemCounts(total=3)), "scheduling", 0),
        (workload(items=ItemCounts(total=3), workers=2), "running", 2),
        (workload(items=ItemCounts(total=3, succeeded=1, failed=1), workers=2), "running", 1),
        (workload(items=ItemCounts(total=3, succeeded=1)), "running", 0),
        (workload(items=ItemCounts(total=3, succeeded=2, failed=1), workers=2), "completed", 0),
        (workload(JobState.CANCELLED, ItemCounts(total=3, succeeded=1), workers=1), "completed", 0),
    ],
)
def test_a_workload_is_scheduling_running_or_completed(job: Job, word: str, running: int):
    assert (images.status(job), images.running_jobs(job)) == (word, running)


def test_images_that_a_workload_had_no_result_of_when_it_ended_wait_no_more():
    told = ItemCounts(total=4, succeeded=2, failed=1)
    going, ended = images.counts(workload(items=told)), images.counts(workload(JobState.CANCELLED, told))
    assert (going.waiting, going.cancelled) == (1, 0)
    assert (ended.waiting, ended.cancelled) == (0, 1)


def test_an_unknown_filter_is_refused_with_those_that_there_are():
    with pytest.raises(WherryError, match="grayscale, blur"):
        images.check_filter("sepia", ("grayscale", "blur"))


def test_a_workload_is_an_open_job_of_warm_workers_whatever_filters():
    by_process = images.spec("w", "blur", images.Program(command=("python3", "x"), env={"A": "b"}), 2)
    for spec in (workload().spec, by_process):
        assert spec.map is not None
        assert spec.map.item_attempts == 2  # the container that ended on an image is not its fault
        assert spec.view == "workload"
        assert spec.map is not None
        assert (spec.map.open, spec.map.warm, spec.params) == (True, True, {"filter": "blur"})
    assert (by_process.runtime, by_process.image, by_process.env) == ("process", None, {"A": "b"})
