"""Inputs that a node keeps: their keys, what goes when room is short, and one filling for all who want the same."""

import asyncio
import io
import zipfile
from collections.abc import AsyncGenerator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.node_agent.adapters.inputs_book import InputsBook
from services.node_agent.adapters.processes import ProcessRuntime
from services.node_agent.core.container import Key
from services.node_agent.core.shelf import Kept, ListingDigest, disk_for_inputs, most, reported, to_remove
from services.node_agent.shell.inputs import Inputs
from shared.errors import Unavailable, WherryError
from shared.fleet import HELD_INPUTS_MAX, Order
from shared.job import BlobRef
from shared.manifest import Entry
from shared.spec import JobSpec
from shared.states import EndReason

ARTIFACT = f"artifact:a{'b' * 25}"
A_DIGEST = sha256(b"a" * 400).hexdigest()


def kept(key: str, size: int = 10, used_at: float = 0.0) -> Kept:
    return Kept("docker", key, f"volume-{key}", is_file=False, bytes=size, used_at=used_at)


def test_what_was_not_used_for_longest_goes_first_and_what_is_in_use_stays() -> None:
    shelf = [kept("new", used_at=3), kept("busy", used_at=1), kept("old", used_at=2), kept("oldest", used_at=0)]
    busy = {("docker", "busy")}
    assert [one.key for one in to_remove(shelf, busy, 5)] == ["oldest"]
    assert [one.key for one in to_remove(shelf, busy, 15)] == ["oldest", "old"]
    assert [one.key for one in to_remove(shelf, busy, 1000)] == ["oldest", "old", "new"]
    assert to_remove(shelf, busy, 0) == []


def test_the_disk_for_inputs_is_a_fifth_unless_said_and_shrinks_when_others_fill_the_disk() -> None:
    assert disk_for_inputs(100, None) == 20
    assert disk_for_inputs(100, 70) == 70
    assert disk_for_inputs(100, 700) == 100
    assert most(20, taken=10, disk=100, free=50) == 20
    assert most(20, taken=10, disk=100, free=7) == 12  # 5 stay free
    assert most(20, taken=10, disk=100, free=0) == 5
    assert most(20, taken=0, disk=100, free=0) == 0


def test_a_heartbeat_names_those_that_were_used_last_by_key() -> None:
    said = reported([kept(f"{number:04}", used_at=number) for number in range(HELD_INPUTS_MAX + 5)])
    assert len(said) == HELD_INPUTS_MAX
    assert (said[0].key, said[-1].key) == ("0005", f"{HELD_INPUTS_MAX + 4:04}")


def entry(path: str, content: bytes | None = b"x", mode: int = 0o644, mtime: float = 1.5) -> Entry:
    blob = None if content is None else BlobRef(sha256=sha256(content).hexdigest(), size=len(content))
    return Entry(path=path, kind="dir" if content is None else "file", mode=mode, mtime=mtime, blob=blob)


def key_of(asked: str | None, *entries: Entry) -> str:
    digest = ListingDigest(asked)
    for one in entries:
        digest.add(one)
    return digest.key


def test_outputs_have_one_key_where_a_program_would_find_the_same() -> None:
    assert key_of(None, entry("a/x")) == key_of("deep", entry("deep/a/x"))
    different = [
        key_of(None, entry("a/x")),
        key_of(None, entry("a/y")),
        key_of(None, entry("a/x", b"other")),
        key_of(None, entry("a/x", mode=0o755)),
        key_of(None, entry("a/x", mtime=7)),
        key_of(None, entry("a/x", None)),
        key_of("a/x", entry("a/x")),
    ]
    assert len(set(different)) == len(different)


def test_one_output_that_was_asked_for_is_a_file() -> None:
    one, all_ = ListingDigest("a/x"), ListingDigest(None)
    one.add(entry("a/x"))
    all_.add(entry("a/x"))
    assert (one.is_file, all_.is_file) == (True, False)


def test_a_path_that_leads_out_of_the_input_is_refused() -> None:
    with pytest.raises(WherryError):
        key_of(None, entry("../x"))


def test_what_was_filled_just_before_the_machine_went_down_is_forgotten(tmp_path: Path) -> None:
    book = InputsBook(tmp_path / "book", "boot-1")
    old, new = kept("old", used_at=1000), kept("new", used_at=2000)
    book.add(old)
    book.add(new)
    book.settle(now=2010)
    book.close()
    same = InputsBook(tmp_path / "book", "boot-1")
    assert same.load() == [old, new]
    same.close()
    after = InputsBook(tmp_path / "book", "boot-2")
    assert after.load() == [old]
    after.remove(old)
    assert after.load() == []
    after.close()


# --- with the process runtime and a storage in memory --------------------------------------------------------------


class Store:
    """Blobs by the name of the input. `gate` holds up the bytes; `fails` is raised in their midst."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.read: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()
        self.fails: list[WherryError] = []
        self.away: list[WherryError] = []

    async def input_pages(self, order: Order, name: str) -> AsyncGenerator[tuple[Entry, ...], None]:
        del order
        if self.away:
            raise self.away.pop()
        yield (entry(f"{name}.bin", self.blobs[name]),)

    async def input_file(self, order: Order, name: str, entry: Entry) -> AsyncGenerator[bytes, None]:
        del entry
        self.read.append(f"{order.job_id}/{name}")
        content = self.blobs[name]
        yield content[:10]
        self.begun.set()
        await self.gate.wait()
        if self.fails:
            raise self.fails.pop()
        yield content[10:]

    async def outputs_tar(self, order: Order, name: str, root: str) -> AsyncGenerator[bytes, None]:
        raise AssertionError(f"no outputs here: {order.job_id} {name} {root}")
        yield b""


class Bench:
    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.store = Store()
        self.runtime = ProcessRuntime(folder / "processes", {})
        self.told: list[str] = []
        self.book = InputsBook(folder / "book", "boot")
        self.inputs = self.opened()

    def opened(self) -> Inputs:
        return Inputs(self.store, {"process": self.runtime}, self.book, self.folder / "spool", self.limit)

    def order(self, job_id: str = "j1", **inputs: Any) -> Order:
        spec = JobSpec(runtime="process", command="true", inputs=inputs or {"x": ARTIFACT})
        return Order(job_id=job_id, owner_id="u1", attempt=1, spec=spec, seq=1)

    async def stage(self, order: Order) -> Path:
        async def provide():
            return await self.inputs.provide(order, self.runtime, "", lambda _, words: self.told.append(words))

        async def nothing() -> None:
            return None

        image = await self.runtime.find_image(order)
        assert image is not None
        await self.runtime.stage(order, image, nothing, provide)
        return self.folder / "processes" / f"{order.job_id}-1" / "inputs"

    @property
    def volumes(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "processes-inputs").iterdir())


@pytest_asyncio.fixture
async def bench(tmp_path: Path) -> AsyncGenerator[Bench, None]:
    bench = Bench(tmp_path, limit=1000)
    yield bench
    await bench.inputs.close()


def zipped(**files: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return held.getvalue()


@pytest.mark.asyncio
async def test_a_zip_is_unpacked_unless_it_is_not_to_be_and_anything_else_is_a_file(bench: Bench) -> None:
    whole = zipped(a__b=b"inner", c=b"")
    bench.store.blobs = {"zip": whole, "raw": whole, "plain": b"just this, and no zip", "empty": b""}
    raw = {"source": ARTIFACT, "unpack": False}
    found = await bench.stage(bench.order(zip=ARTIFACT, raw=raw, plain=ARTIFACT, empty=ARTIFACT))
    assert (found / "zip" / "a" / "b").read_bytes() == b"inner"
    assert (found / "zip" / "c").read_bytes() == b""
    assert (found / "raw").read_bytes() == whole
    assert (found / "plain").read_bytes() == b"just this, and no zip"
    assert (found / "empty").read_bytes() == b""
    assert list((bench.folder / "spool").iterdir()) == []


@pytest.mark.asyncio
async def test_several_that_want_the_same_wait_for_one_filling(bench: Bench) -> None:
    bench.store.blobs = {"x": b"0123456789rest"}
    bench.store.gate.clear()
    staging = [asyncio.create_task(bench.stage(bench.order(f"j{number}"))) for number in range(5)]
    await bench.store.begun.wait()
    bench.store.gate.set()
    for folder in await asyncio.gather(*staging):
        assert (folder / "x").read_bytes() == b"0123456789rest"
    assert len(bench.store.read) == len(bench.volumes) == 1


@pytest.mark.asyncio
async def test_one_whose_filling_another_gave_up_brings_it_by_itself(bench: Bench) -> None:
    bench.store.blobs = {"x": b"0123456789rest"}
    bench.store.gate.clear()
    bench.store.fails = [WherryError(EndReason.INPUT_MISSING, "the job was cancelled")]
    first = asyncio.create_task(bench.stage(bench.order("j1")))
    await bench.store.begun.wait()
    second = asyncio.create_task(bench.stage(bench.order("j2")))
    bench.store.gate.set()
    with pytest.raises(WherryError, match="was cancelled"):
        await first
    assert ((await second) / "x").read_bytes() == b"0123456789rest"
    assert bench.store.read == ["j1/x", "j2/x"]


@pytest.mark.asyncio
async def test_what_nobody_wants_any_more_is_not_brought_to_its_end_and_leaves_nothing(bench: Bench) -> None:
    bench.store.blobs = {"x": b"0123456789rest"}
    bench.store.gate.clear()
    staging = asyncio.create_task(bench.stage(bench.order()))
    await bench.store.begun.wait()
    staging.cancel()
    await asyncio.wait({staging})
    await bench.inputs.close()
    assert bench.volumes == []
    bench.book = InputsBook(bench.folder / "book", "boot")
    assert bench.book.load() == []


@pytest.mark.asyncio
async def test_who_ends_while_a_filling_is_given_up_lets_it_be_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop, going = bench.runtime.drop_input, asyncio.Event()

    async def slowly(volume: str) -> bool:
        going.set()
        await asyncio.sleep(0)
        return await drop(volume)

    monkeypatch.setattr(bench.runtime, "drop_input", slowly)
    bench.store.blobs = {"x": b"0123456789rest"}
    bench.store.gate.clear()
    staging = asyncio.create_task(bench.stage(bench.order()))
    await bench.store.begun.wait()
    staging.cancel()
    await going.wait()
    await bench.inputs.close()
    assert bench.volumes == []


@pytest.mark.asyncio
async def test_the_least_recently_used_goes_and_what_an_attempt_uses_stays_until_it_is_released(bench: Bench) -> None:
    bench.store.blobs = {"a": b"a" * 400, "b": b"b" * 400, "c": b"c" * 400}
    await bench.stage(bench.order("ja", a=ARTIFACT))
    await bench.stage(bench.order("jb", b=ARTIFACT))
    third = asyncio.create_task(bench.stage(bench.order("jc", c=ARTIFACT)))
    await asyncio.wait({third}, timeout=0.2)
    assert not third.done()  # both are in use
    await bench.inputs.release(Key("ja", 1))
    await third
    assert {one.key for one in bench.inputs.held} == {
        sha256(bench.store.blobs[n]).hexdigest() + "-unpacked" for n in "bc"
    }
    assert bench.inputs.unused == 200


@pytest.mark.asyncio
async def test_an_input_larger_than_all_room_is_refused_and_so_is_a_zip_that_unpacks_to_more(bench: Bench) -> None:
    bench.store.blobs = {"x": b"x" * 1001}
    with pytest.raises(WherryError, match="WHERRY_INPUTS_DISK") as refused:
        await bench.stage(bench.order())
    assert refused.value.code == EndReason.DISK
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(2000))
    bench.store.blobs = {"x": held.getvalue()}
    with pytest.raises(WherryError, match="The input x cannot be unpacked"):
        await bench.stage(bench.order("j2"))
    assert bench.volumes == []


@pytest.mark.asyncio
async def test_what_somebody_else_removed_is_brought_again(bench: Bench) -> None:
    bench.store.blobs = {"x": b"0123456789rest"}
    await bench.stage(bench.order("j1"))
    await bench.runtime.drop_input(bench.volumes[0])
    folder = await bench.stage(bench.order("j2"))
    assert (folder / "x").read_bytes() == b"0123456789rest"
    assert bench.store.read == ["j1/x", "j2/x"]


@pytest.mark.asyncio
async def test_an_agent_that_starts_anew_knows_what_is_whole(bench: Bench) -> None:
    bench.store.blobs = {"x": b"0123456789rest"}
    await bench.stage(bench.order("j1"))
    bench.inputs = bench.opened()
    await bench.stage(bench.order("j2"))
    assert bench.store.read == ["j1/x"]


@pytest.mark.asyncio
async def test_a_url_that_is_still_being_fetched_is_asked_for_again(bench: Bench) -> None:
    bench.store.blobs = {"x": b"0123456789rest"}
    bench.store.away = [Unavailable("being fetched, 1 of 2 bytes")]
    assert ((await bench.stage(bench.order())) / "x").exists()
    assert bench.told == ["being fetched, 1 of 2 bytes"]


@pytest.mark.asyncio
async def test_a_removed_input_leaves_an_attempt_that_uses_it_alone(bench: Bench) -> None:
    bench.store.blobs = {"x": zipped(a=b"inner")}
    folder = await bench.stage(bench.order())
    await bench.runtime.drop_input(bench.volumes[0])
    assert (folder / "x" / "a").read_bytes() == b"inner"
    await bench.runtime.clear(Key("j1", 1))
    assert not folder.exists()


@pytest.mark.asyncio
async def test_what_is_wanted_while_it_goes_is_brought_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.store.blobs = {name: name.encode() * 400 for name in "abc"}
    for name in "ab":
        await bench.stage(bench.order(f"j{name}", **{name: ARTIFACT}))
        await bench.inputs.release(Key(f"j{name}", 1))
    drop, going, gate = bench.runtime.drop_input, list[str](), asyncio.Event()

    async def slowly(volume: str) -> bool:
        going.append(volume)
        await gate.wait()
        return await drop(volume)

    monkeypatch.setattr(bench.runtime, "drop_input", slowly)
    third = asyncio.create_task(bench.stage(bench.order("jc", c=ARTIFACT)))
    while not going:
        await asyncio.sleep(0)
    again = [asyncio.create_task(bench.stage(bench.order(f"j{name}2", **{name: ARTIFACT}))) for name in "ab"]
    while not {Key("ja2", 1), Key("jb2", 1)} <= set().union(*bench.inputs._users.values()):
        await asyncio.sleep(0.01)  # until both want theirs
    gate.set()
    assert ((await again[1]) / "b").read_bytes() == b"b" * 400  # it was there, and next to go
    await asyncio.sleep(0.1)
    await bench.inputs.release(Key("jb2", 1))
    folder, _ = await asyncio.gather(again[0], third)
    assert (folder / "a").read_bytes() == b"a" * 400
    assert bench.store.read.count("ja2/a") == 1, "it was given while it went"
    assert bench.store.read.count("jb2/b") == 0


@pytest.mark.asyncio
async def test_an_input_that_a_program_of_the_last_agent_uses_keeps_no_other_from_going(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.store.blobs = {name: name.encode() * 400 for name in "abc"}
    for name in "ab":
        await bench.stage(bench.order(f"j{name}", **{name: ARTIFACT}))
    drop, [used] = bench.runtime.drop_input, [one.volume for one in bench.book.load() if one.key.startswith(A_DIGEST)]

    async def unless_used(volume: str) -> bool:
        return volume != used and await drop(volume)

    monkeypatch.setattr(bench.runtime, "drop_input", unless_used)
    bench.inputs = bench.opened()
    async with asyncio.timeout(60):
        await bench.stage(bench.order("jc", c=ARTIFACT))
    assert used in bench.volumes
    assert used in {one.volume for one in bench.book.load()}
    await bench.stage(bench.order("ja2", a=ARTIFACT))
    assert bench.store.read == ["ja/a", "jb/b", "jc/c"]


@pytest.mark.asyncio
async def test_a_program_that_writes_to_its_input_changes_nobody_elses(bench: Bench) -> None:
    bench.store.blobs = {"x": b"0123456789rest", "zip": zipped(inner=b"whole")}
    inputs = {"x": ARTIFACT, "zip": ARTIFACT}
    first = await bench.stage(bench.order("j1", **inputs))
    for path in (first / "x", first / "zip" / "inner"):
        with suppress(PermissionError):  # root has every right
            path.write_bytes(b"changed")
    second = await bench.stage(bench.order("j2", **inputs))
    assert (second / "x").read_bytes() == b"0123456789rest"
    assert (second / "zip" / "inner").read_bytes() == b"whole"
    assert bench.store.read == ["j1/x", "j1/zip"]
