"""Workers of map jobs: item after item, by one warm program or by a command for each, with containers and processes."""

import asyncio
import hashlib
import io
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image, ImageChops, ImageFilter, ImageOps

from shared.blobs import BlobClient
from shared.bus import Record, job_filter
from shared.channels import JOB_CHANGED, Service
from shared.errors import NotFound, Unavailable
from shared.events import Event, JobChanged
from shared.fleet import ItemOrder, Order
from shared.ids import new_id
from shared.job import Attempt, BlobRef, GangPlace, Item, Job
from shared.requests.blobs import BlobRead
from shared.spec import ItemSpec, JobSpec, Map
from shared.states import AttemptState, JobState
from tests.integration.agent_stack import (
    IMAGE,
    NOW,
    OWNER,
    ROOT,
    AgentProcess,
    Head,
    agent_of,
    busybox,
    head_of,
    storage_of,
    whole,
    zip_of,
)

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]

FILTERS = "wherry/filters"
WAIT_S = 120  # engines that are busy with other tests
#: Makes capitals of a file; one that says "bad" fails, one that says "slow" takes its time.
WARM = r"""
echo started
value() { printf '%s\n' "$line" | sed 's/.*"'"$1"'": "\([^"]*\)".*/\1/'; }
while IFS= read -r line; do
    id=$(value item)
    in=$(value in)
    echo "run $id" >> "$WHERRY_OUTPUTS/runs"
    if grep -q slow "$in"; then sleep 1; fi
    if grep -q stuck "$in"; then sleep 600; fi
    if grep -q bad "$in"; then echo "::item $id failed it is bad"; continue; fi
    tr a-z A-Z < "$in" > "$(value out)"
    echo "::item $id ok"
done
echo closed
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(mongo_server: str, folder: Path) -> AsyncIterator[Head]:
    busybox()
    async with storage_of(mongo_server, folder / "storage") as storage, head_of(storage) as head:
        yield head


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(head: Head, folder: Path) -> AsyncIterator[AgentProcess]:
    async with agent_of(head.stack, head, folder / "agent") as agent:
        yield agent


@pytest.fixture(params=["docker", "process"])
def runtime(request: pytest.FixtureRequest) -> dict[str, Any]:
    small = {"resources": {"disk": "64MiB", "memory": "64MiB", "cpus": 0.2}}
    return small | ({"image": IMAGE} if request.param == "docker" else {"runtime": "process"})


class Parent:
    """A map job as the scheduler's events tell of it, and one worker of it."""

    def __init__(self, head: Head, order: Order) -> None:
        self.head, self.order = head, order
        self.given: dict[str, ItemOrder] = {}

    @property
    def ends(self) -> dict[str, dict[str, Any]]:
        """What was reported of items, the first word on each."""
        found: dict[str, dict[str, Any]] = {}
        for job, name, data in self.head.reports:
            if (job, name) == (self.order.job_id, "items"):
                for end in data["ends"]:
                    found.setdefault(end["id"], end)
        return found

    async def add(self, *bodies: bytes | ItemSpec, names: str = "text-{}.txt") -> list[str]:
        """Record items, and give them to the worker."""
        orders: list[ItemOrder] = []
        for number, body in enumerate(bodies):
            spec = body if isinstance(body, ItemSpec) else None
            if spec is None:
                artifact = await self.head.upload(body)
                sha256 = hashlib.sha256(body).hexdigest()
                spec = ItemSpec(name=names.format(number), artifact=artifact, sha256=sha256, size=len(body))
            orders.append(ItemOrder(id=new_id("i"), spec=spec))
        await self._record([Item(id=one.id, index=0, spec=one.spec, added_at=NOW) for one in orders])
        self.given |= {one.id: one for one in orders}
        await self.tell()
        return [one.id for one in orders]

    async def tell(self, action: str = "keep", *, close: bool = False) -> None:
        left = tuple(one for id_, one in self.given.items() if id_ not in self.ends)
        await self.head.say(self.order, action, items=left, close=close)

    async def until_ended(self, count: int, timeout_s: float = WAIT_S) -> dict[str, dict[str, Any]]:
        await self.head.until(lambda: len(self.ends) >= count, timeout_s)
        return self.ends

    async def left(self, item_id: str) -> dict[str, bytes]:
        files = self.ends[item_id].get("files", ())
        return {one["path"]: await self.head.read(BlobRef(**one["blob"])) for one in files}

    async def finished(self) -> dict[str, Any]:
        return await self.head.until(lambda: self.head.told(self.order.job_id, "finished"), WAIT_S)

    async def _record(self, items: list[Item]) -> None:
        assert self.order.parent
        assert self.order.map
        job = Job(
            id=self.order.parent, owner=OWNER, spec=JobSpec(kind="map", image=IMAGE, map=self.order.map),
            state=JobState.RUNNING, created_at=NOW, updated_at=NOW, attempt=0,
        )  # fmt: skip
        await record(self.head, job, "items", items)


async def record(head: Head, job: Job, name: str, items: list[Item] | None = None) -> int:
    last = await head.bus.last("WHERRY_JOBS", job_filter(job.id))
    event = Event[JobChanged](
        id=new_id("e"), source="/wherry/scheduler", type=f"io.wherry.job.{name}.v1", time=NOW, subject=job.id,
        data=JobChanged(job=job, items=tuple(items or ())),
    )  # fmt: skip
    params = {"owner": OWNER.id, "job_id": job.id, "event": name}
    stored = await head.bus.record(Record(JOB_CHANGED, params, event, (job_filter(job.id), last.seq if last else 0)))
    return stored.seq


async def worker(head: Head, map_: dict[str, Any], **spec: Any) -> Parent:
    """Start a worker of a map job on the node."""
    job_id, parent = new_id("j"), new_id("j")
    attempts = (Attempt(number=1, node="n1", state=AttemptState.PLACED, placed_at=NOW),)
    place = GangPlace(gang_id=parent, round=1, role="worker", index=0, rank=0, size=1)
    job = Job(
        id=job_id, owner=OWNER, spec=JobSpec(**spec), state=JobState.PLACED, created_at=NOW, updated_at=NOW,
        attempt=1, attempts=attempts, member_of=place,
    )  # fmt: skip
    seq = await record(head, job, "placed")
    order = Order(
        job_id=job_id, owner_id=OWNER.id, attempt=1, spec=job.spec, seq=seq, parent=parent, map=Map(**map_)
    )  # fmt: skip
    made = Parent(head, order)
    await made.tell("start")
    return made


async def test_a_warm_worker_takes_item_after_item_and_ends_when_it_is_told_that_no_more_come(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    source = await head.upload(zip_of({"warm.sh": WARM}))
    one = await worker(head, {"warm": True}, command="exec sh warm.sh", source=source, **runtime)
    bodies = [f"text number {number}\n".encode() for number in range(50)]
    bodies[17] = b"this one is bad\n"
    ids = await one.add(*bodies)
    ends = await one.until_ended(50)
    for number, item_id in enumerate(ids):
        if number == 17:
            assert ends[item_id]["error"] == {"reason": "item_failed", "message": "it is bad"}
        else:
            assert await one.left(item_id) == {f"text-{number}.txt": bodies[number].upper()}
            assert "error" not in ends[item_id]
    assert head.told(one.order.job_id, "finished") is None
    await one.tell(close=True)
    finished = await one.finished()
    assert (finished["state"], finished["exit_code"]) == ("succeeded", 0)
    assert [name for job, name, _ in head.reports if job == one.order.job_id][-1] == "finished"
    assert head.text(one.order.job_id) == ["started", "closed"]  # what is said of items is no part of the output
    manifest = await head.manifest(finished)
    assert [entry.path for entry in manifest.entries] == ["runs"]


async def test_a_command_is_run_for_each_item(head: Head, agent: AgentProcess, runtime: dict[str, Any]) -> None:
    command = (
        'printf "open line"; cat "$WHERRY_ITEM_PARAMS" >&2; [ -n "$WHERRY_IN" ] || exit 3; '
        'mkdir "$WHERRY_OUT"; cp "$WHERRY_IN" "$WHERRY_OUT/copy"; echo "$WHERRY_ITEM" > "$WHERRY_OUT/id"'
    )
    one = await worker(head, {}, command=command, **runtime)
    (first,) = await one.add(b"\0\1bytes", names="größe mit leer.bin")
    (second,) = await one.add(ItemSpec(name="no file", params={"k": "v ' \" $x"}))
    await one.until_ended(2)
    assert await one.left(first) == {"copy": b"\0\1bytes", "id": first.encode() + b"\n"}
    assert one.ends[second]["error"] == {"reason": "item_failed", "message": "exit code 3"}
    assert await one.left(second) == {}
    await one.tell(close=True)
    assert (await one.finished())["state"] == "succeeded"
    said = [(line.s, line.x) for line in head.lines[one.order.job_id]]
    assert sorted(said) == sorted([("e", "{}"), ("e", '{"k": "v \' \\" $x"}'), ("o", "open line"), ("o", "open line")])
    assert [line.i for line in head.lines[one.order.job_id] if line.s == "o"] == [first, second]


async def test_an_item_that_takes_too_long_fails_and_its_worker_is_stopped(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    source = await head.upload(zip_of({"warm.sh": WARM}))
    map_ = {"warm": True, "item_timeout": 15}  # enough for the good one, however busy the machine is
    one = await worker(head, map_, command="exec sh warm.sh", source=source, **runtime)
    good, stuck, after = await one.add(b"good", b"stuck", b"never begun")
    finished = await one.finished()
    assert await one.left(good) == {"text-0.txt": b"GOOD"}
    assert one.ends[stuck]["error"]["reason"] == "item_timeout"
    assert any(stuck in held.items for beat in head.beats for held in beat.attempts), "a new scheduler must know"
    assert after not in one.ends
    assert (finished["state"], finished["error"]["reason"]) == ("failed", "item_timeout")


async def test_a_worker_runs_on_without_its_agent_and_the_next_agent_loses_and_repeats_nothing(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    source = await head.upload(zip_of({"warm.sh": WARM}))
    one = await worker(head, {"warm": True}, command="exec sh warm.sh", source=source, **runtime)
    bodies = [b"quick %d" % index if index % 10 else b"slow %d" % index for index in range(20)]
    ids = await one.add(*bodies)
    await one.until_ended(5)
    await agent.stop(signal.SIGKILL)
    await asyncio.sleep(1)
    await agent.start()
    await one.until_ended(20)
    for index, item_id in enumerate(ids):
        assert await one.left(item_id) == {f"text-{index}.txt": bodies[index].upper()}
    (more,) = await one.add(b"after it")
    await one.until_ended(21)
    await one.tell(close=True)
    finished = await one.finished()
    assert finished["state"] == "succeeded"
    (runs,) = (entry.blob for entry in (await head.manifest(finished)).entries)
    assert runs
    assert sorted((await head.read(runs)).decode().split("\n")[:-1]) == sorted(f"run {id_}" for id_ in [*ids, more])


async def test_what_a_worker_does_while_its_node_is_cut_off_is_told_afterwards_and_before_its_end(
    head: Head, agent: AgentProcess
) -> None:
    source, disk = await head.upload(zip_of({"warm.sh": WARM})), {"disk": "64MiB"}
    one = await worker(head, {"warm": True}, command="exec sh warm.sh", source=source, image=IMAGE, resources=disk)
    bodies = [b"slow %d" % index if index % 10 == 2 else b"quick %d" % index for index in range(20)]
    ids = await one.add(*bodies)
    await one.tell(close=True)
    await one.until_ended(2)
    head.stack.nats.kill()
    try:
        await asyncio.sleep(1)
        await agent.stop(signal.SIGKILL)  # what was said meanwhile is known to its journal, or in the output
        await agent.start()
        await asyncio.sleep(2)
    finally:
        head.stack.nats.start()
    finished = await one.finished()
    for index, item_id in enumerate(ids):
        assert await one.left(item_id) == {f"text-{index}.txt": bodies[index].upper()}
    assert finished["state"] == "succeeded"
    assert [name for job, name, _ in head.reports if job == one.order.job_id][-1] == "finished"


def picture(format_: str, number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").rotate(10 * number).save(buffer, format_)
    return buffer.getvalue()


def opened(body: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(body))
    image.load()
    return image


async def test_the_filters_image_is_a_warm_worker_by_its_own_entry_point(head: Head, agent: AgentProcess) -> None:
    filters_image()
    spec: dict[str, Any] = {"image": FILTERS, "params": {"filter": "blur"}, "resources": {"disk": "64MiB"}}
    one = await worker(head, {"warm": True}, **spec)
    good = await one.add(*(picture("PNG", number) for number in range(20)), names="{}.png")
    jpeg, bad = await one.add(picture("JPEG"), b"no picture", names="photo-{}.JPG")
    await one.until_ended(22)
    for number, item_id in enumerate(good):
        (body,) = (await one.left(item_id)).values()
        expected = opened(picture("PNG", number)).filter(ImageFilter.GaussianBlur(2))
        assert ImageChops.difference(opened(body), expected).getbbox() is None
    ((name, body),) = (await one.left(jpeg)).items()
    assert (name, opened(body).format) == ("photo-0.JPG", "JPEG")
    assert one.ends[bad]["error"]["message"] == "it is no picture of a format that is known"
    await one.tell(close=True)
    assert (await one.finished())["state"] == "succeeded"


async def test_the_filters_image_does_an_ordinary_job(head: Head, agent: AgentProcess) -> None:
    filters_image()
    source = await head.upload(zip_of({"in/a.png": picture("PNG"), "in/b.bmp": picture("BMP")}))
    command = 'python3 -m filters grayscale in "$WHERRY_OUTPUTS"'
    _, finished = await head.run(WAIT_S, image=FILTERS, source=source, command=command, resources={"disk": "64MiB"})
    assert finished["state"] == "succeeded", finished
    manifest = await head.manifest(finished)
    found = {entry.path: await head.read(entry.blob) for entry in manifest.entries if entry.blob}
    assert sorted(found) == ["a.png", "b.png"]
    for body in found.values():
        assert ImageChops.difference(opened(body), ImageOps.grayscale(opened(picture("PNG")))).getbbox() is None


async def test_a_node_reads_the_items_of_the_workers_that_it_runs_and_no_others(
    head: Head, agent: AgentProcess
) -> None:
    one = await worker(head, {"warm": True}, command="cat", image=IMAGE, resources={"disk": "64MiB"})
    (mine,) = await one.add(b"mine")
    (other,) = await (await worker(head, {}, command="cat", image=IMAGE)).add(b"of another job")
    secret = await head.upload(b"nobody's item")
    given = one.given[mine].spec.artifact
    wanted = BlobRead(artifact_id=given, job_id=one.order.job_id, item=mine, min_seq=one.order.seq)
    async with head.stack.bus(Service.NODE_AGENT, "n1") as bus, head.stack.bus(Service.NODE_AGENT, "n2") as second:
        node, stranger = BlobClient(bus, "node", "n1"), BlobClient(second, "node", "n2")
        assert await whole(node.read(wanted)) == b"mine"
        for refused in (
            wanted.model_copy(update={"artifact_id": secret}),
            wanted.model_copy(update={"job_id": one.order.parent}),
        ):
            with pytest.raises(NotFound):
                await whole(node.read(refused))
        with pytest.raises(Unavailable):  # as if it were not known yet
            await whole(node.read(wanted.model_copy(update={"item": other}), patience_s=0))
        with pytest.raises(NotFound):
            await whole(stranger.read(wanted))


def filters_image() -> None:
    subprocess.run([ROOT / "infra/docker/build-filters.sh"], check=True, stdout=subprocess.DEVNULL)
