"""Both runtimes refuse hostile zips, leave nothing of them, and run good ones."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.node_agent.adapters.docker_endpoint import endpoints
from services.node_agent.adapters.docker_runtime import DockerRuntime
from services.node_agent.adapters.processes import ProcessRuntime
from services.node_agent.core.container import Key, Place
from shared.errors import WherryError
from shared.fleet import Order
from shared.ids import new_id
from shared.spec import JobSpec
from tests.integration.agent_stack import IMAGE, busybox, clean_up
from tests.unit.shared.test_hostile_zips import digest_of
from tests.zips.good import GOOD
from tests.zips.hostile import HOSTILE

#: One of each way to be noticed: by its end, its directory, an entry's header, or only while it is unpacked.
SAMPLE = [
    "a link, and a file through it", "upwards", "macOS's folder upwards", "upwards, with a harmless Unicode name",
    "twice but for case", "a file under a file", "each a byte further", "two names", "bytes behind",
    "a quarter of a gigabyte that claims ten bytes", "another checksum", "no deflate", "less than it claims",
]  # fmt: skip


@pytest.fixture(params=[pytest.param("docker", marks=pytest.mark.docker), "process"])
async def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    if request.param == "process":
        yield ProcessRuntime(tmp_path / "attempts", {"PATH": os.environ["PATH"]})
        return
    busybox()
    place = Place(new_id("t"), "n1")
    docker = DockerRuntime(place, endpoints(os.environ, Path.home(), os.getuid()))
    await docker.describe()
    yield docker
    await docker.close()
    clean_up(place.stack)


def order_for(runtime: Any, command: str) -> Order:
    more = {"image": IMAGE} if isinstance(runtime, DockerRuntime) else {"runtime": "process"}
    spec = JobSpec.model_validate({"command": command, "source": "a" * 26, "resources": {"disk": "64MiB"}, **more})
    return Order(job_id=new_id("j"), owner_id="u1", attempt=1, spec=spec, seq=1)


async def staged(runtime: Any, order: Order, path: Path) -> str:
    async def source() -> Path:
        return path

    image = await runtime.find_image(order)
    assert image
    return await runtime.stage(order, image, source)


async def test_hostile_zips_are_refused_and_nothing_of_them_is_left(runtime: Any, tmp_path: Path) -> None:
    path = tmp_path / "source.zip"
    (tmp_path / "x").write_text("a canary")
    (tmp_path / "attempts").mkdir(exist_ok=True)
    before = digest_of(tmp_path)
    for name in SAMPLE:
        path.write_bytes(HOSTILE[name].make())
        order = order_for(runtime, "true")
        with pytest.raises(WherryError) as caught:
            await staged(runtime, order, path)
        assert caught.value.code == "bad_source", name
        assert HOSTILE[name].named in caught.value.message, name
        await runtime.clear(Key(order.job_id, 1))
        path.unlink()
        assert digest_of(tmp_path) == before, name
    assert await runtime.found() == []


async def test_a_zip_of_macos_is_there_without_what_macos_adds(runtime: Any, tmp_path: Path) -> None:
    path = tmp_path / "source.zip"
    path.write_bytes(GOOD["macOS"].make())
    missing = "test ! -e __MACOSX && test ! -e d/Icon* && test -e d/.DS_Store && sh d/run.sh"
    order = order_for(runtime, missing)
    key, handle = Key(order.job_id, 1), await staged(runtime, order, path)
    await runtime.start(key, handle)
    await runtime.follow(key, handle, None, lambda _: None).wait()
    while (outcome := await runtime.outcome(key, handle)) is None:  # the end of the output shows before it
        await asyncio.sleep(0.01)
    await runtime.clear(key)
    assert outcome.exit_code == 0
