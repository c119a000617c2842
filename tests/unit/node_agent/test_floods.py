"""What is too much: series, lines and bytes in bounded room."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.node_agent.adapters import use as look
from services.node_agent.core.allowance import BURST_S, Allowance
from services.node_agent.core.frames import Frame, LogPosition, unread
from services.node_agent.core.kept import LastBytes
from services.node_agent.core.series import NAMES_MAX, POINTS_MAX, SeriesSet
from services.node_agent.core.use import GpuUse, Use, points, use_in_stats
from services.node_agent.ports import Chunk
from services.node_agent.shell.output import OutputPump, final_batches, series_in
from shared.clock import monotonic
from shared.events import MetricPoint, OutputBatch
from shared.fleet import Gpu

AT = datetime(2026, 1, 1, tzinfo=UTC)


def point(number: int, name: str = "loss", value: float | None = None) -> MetricPoint:
    at = AT + timedelta(seconds=number)
    return MetricPoint(name=name, value=float(number) if value is None else value, step=number, at=at)


# --- series ----------------------------------------------------------------------------------------------------------


def test_a_series_without_end_stays_bounded_and_keeps_its_ends() -> None:
    series = SeriesSet()
    live = series.take(point(number) for number in range(50_000))
    whole = series.whole()
    assert len(whole) <= POINTS_MAX + 1
    assert (whole[0].step, whole[-1].step) == (0, 49_999)
    assert len(live) < 10 * POINTS_MAX, "ever fewer are sent live"


def test_a_short_series_is_whole_and_names_are_bounded() -> None:
    series = SeriesSet()
    series.take(point(number) for number in range(100))
    assert series.whole() == [point(number) for number in range(100)]
    series.take(point(1, f"name{number}") for number in range(2 * NAMES_MAX))
    series.take([point(1, "system.cpu")])
    names = {one.name for one in series.whole()}
    assert len(names) == NAMES_MAX + 1
    assert "system.cpu" in names


def test_peaks_are_of_what_the_agent_measured_kept_or_not() -> None:
    series = SeriesSet()
    series.take(point(number, "system.memory", 5.0 if number % 2 else 1.0) for number in range(3 * POINTS_MAX))
    series.take([point(1)])
    assert series.peaks() == {"system.memory": 5.0}


def test_series_go_on_after_a_restart() -> None:
    series = SeriesSet()
    live = series.take(point(number, "system.cpu") for number in range(5000))
    again = SeriesSet.restored(live, series.saved())
    assert again.peaks() == series.peaks()
    assert len(again.take(point(number, "system.cpu") for number in range(5000, 6000))) <= 1000 // 2
    assert len(again.whole()) <= POINTS_MAX + 1


# --- what may travel -------------------------------------------------------------------------------------------------


def test_an_allowance_lets_a_burst_through_and_then_its_rate() -> None:
    allowance, sent, now = Allowance(), 0, 100.0
    for _ in range(600):  # a minute of ten looks a second
        allowance.fill(now, 1000)
        if allowance.is_open:
            allowance.take(500)
            sent += 500
        now += 0.1
    assert sent == pytest.approx(1000 * (BURST_S + 60), rel=0.02)
    assert allowance.is_low
    allowance.fill(now + BURST_S, 1000)
    assert not allowance.is_low


def test_without_a_rate_everything_may_travel() -> None:
    allowance = Allowance()
    allowance.take(10**12)
    assert allowance.is_open
    assert not allowance.is_low


@given(st.lists(st.tuples(st.sampled_from("oe"), st.binary(max_size=40)), max_size=30), st.integers(0, 60))
def test_the_last_bytes_are_the_last_of_both_streams_and_all_are_counted(
    pieces: list[tuple[str, bytes]], most: int
) -> None:
    last = LastBytes(most)
    for stream, data in pieces:
        last.add(stream, data)
    in_order = [(stream, byte) for stream, data in pieces for byte in data]
    expected = in_order[max(0, len(in_order) - most) :]
    for stream in "oe":
        assert last.of(stream) == bytes(byte for name, byte in expected if name == stream)
    counted = {stream: sum(len(data) for name, data in pieces if name == stream) for stream in "oe"}
    assert {stream: last.sizes().get(stream, 0) for stream in "oe"} == counted


class Seen:
    """What a pump has published."""

    def __init__(self) -> None:
        self.batches: list[OutputBatch] = []

    async def publish(self, batch: OutputBatch) -> None:
        self.batches.append(batch)

    def texts(self) -> list[str]:
        return [line.x for batch in self.batches for line in batch.lines]

    def numbers(self) -> list[int]:
        return [line.n for batch in self.batches for line in batch.lines]

    def lost(self) -> list[int]:
        return [n for batch in self.batches for one in batch.lost for n in range(one.first, one.last + 1)]


async def printed(
    folder: Path, lines: int, *, bytes_max: int, rate: Callable[[], float] | None = None, text: bytes = b"line %d\n"
) -> Seen:
    seen = Seen()
    pump = OutputPump(folder, seen.publish, bytes_max=bytes_max, rate=rate)
    running = asyncio.create_task(pump.run())

    def read() -> None:
        for start in range(0, lines, 1000):
            data = b"".join(text % number for number in range(start, min(lines, start + 1000)))
            pump.sink(Chunk("o", AT, data, {"at": start}))

    await asyncio.to_thread(read)
    await pump.finish()
    running.cancel()
    return seen


async def test_faster_than_may_be_published_lines_are_left_out_named_and_in_the_file(tmp_path: Path) -> None:
    count = 100_000
    seen = await printed(tmp_path, count, bytes_max=10**7, rate=lambda: 10_000)
    numbers, lost = seen.numbers(), seen.lost()
    assert numbers == sorted(set(numbers))
    assert sorted(numbers + lost) == list(range(1, count + 1)), "each line is either there or said to be left out"
    assert len(lost) > count / 2
    assert seen.texts()[-1] == f"line {count - 1}", "the end is there"
    assert (tmp_path / "stdout").read_bytes() == b"".join(b"line %d\n" % n for n in range(count))


async def test_of_too_much_the_beginning_and_the_end_are_kept_with_the_number_of_bytes_between(tmp_path: Path) -> None:
    seen = await printed(tmp_path, 20_000, bytes_max=10_000)
    kept = (tmp_path / "stdout").read_bytes()
    assert kept.startswith(b"line 0\nline 1\n")
    assert kept.endswith(b"line 19998\nline 19999\n")
    whole = sum(len(b"line %d\n" % n) for n in range(20_000))
    assert b"[wherry: %d bytes are left out here; the first 7500 of" % (whole - 10_000) in kept
    assert any(text.startswith("[wherry: the first 7500 bytes of the output are kept") for text in seen.texts())
    assert seen.texts()[-1] == "line 19999"
    assert sorted(seen.numbers() + seen.lost()) == list(range(1, max(seen.numbers()) + 1))


async def test_an_end_that_is_in_the_file_is_not_told_as_left_out_by_the_next_agent(tmp_path: Path) -> None:
    await printed(tmp_path, 20_000, bytes_max=10_000)
    kept = (tmp_path / "stdout").read_bytes()
    again = OutputPump(tmp_path, Seen().publish, bytes_max=10_000)  # the last agent ended before it knew of the end
    await again.finish()
    assert (tmp_path / "stdout").read_bytes() == kept


async def test_what_just_fits_with_its_end_has_no_mark_in_the_file(tmp_path: Path) -> None:
    await printed(tmp_path, 1, bytes_max=100, text=b"%d" + b"x" * 88 + b"\n")
    assert (tmp_path / "stdout").read_bytes() == b"0" + b"x" * 88 + b"\n"


async def test_a_line_without_end_is_one_line(tmp_path: Path) -> None:
    seen = await printed(tmp_path, 20_000, bytes_max=10**9, text=b"%d ")
    assert seen.numbers() == [1]
    assert seen.texts()[0].startswith("0 1 2 ")
    assert len(seen.texts()[0]) < 17_000


async def test_what_was_measured_is_whole_at_the_end_whatever_was_lost(tmp_path: Path) -> None:
    async def lose(batch: OutputBatch) -> None:
        del batch

    pump = OutputPump(tmp_path, lose, bytes_max=1000)
    for number in range(1500):
        pump.sink(Chunk("o", AT, b"::metric loss=%d step=%d\n" % (number, number), {}))
    pump.measure([point(1, "system.memory", 7.0)])
    await pump.finish()
    series = series_in(tmp_path)
    batches = final_batches(series)
    assert [batch.final and (batch.final.index, batch.final.count) for batch in batches] == [(0, 2), (1, 2)]
    own = [one.step for batch in batches for one in batch.metrics if one.name == "loss"]
    assert sorted(step for step in own if step is not None) == list(range(1500))
    assert series.peaks() == {"system.memory": 7.0}


async def test_progress_is_told_at_once_then_seldom_and_at_last(tmp_path: Path) -> None:
    seen, began = Seen(), monotonic()
    pump = OutputPump(tmp_path, seen.publish, bytes_max=10_000)
    running = asyncio.create_task(pump.run())
    for number in range(40):
        pump.sink(Chunk("e", AT, b"\r%3d%%|##  | %d/100 [" % (number, number), {}))
        await asyncio.sleep(0.01)
    await pump.finish()
    running.cancel()
    told = [batch.progress.fraction for batch in seen.batches if batch.progress]
    assert told[-1] == 0.39
    assert len(told) <= 2 + (monotonic() - began), "between the first and the last, one a second"


# --- frames ----------------------------------------------------------------------------------------------------------


def frames(*stamps: str, stream: str = "o") -> list[Frame]:
    return [Frame(stream, f"2026-01-01T00:00:00.{stamp}Z", stamp.encode()) for stamp in stamps]  # type: ignore[arg-type]


def test_what_comes_in_one_hundredth_of_a_second_comes_as_one_piece_with_the_place_behind_it() -> None:
    given = [*frames("000000001", "001000000", "020000000"), *frames("020000001", stream="e")]
    found = list(unread(given, LogPosition()))
    assert [frame.data for frame, _ in found] == [b"000000001001000000", b"020000000", b"020000001"]
    (_, behind), *_ = found
    rest = [frame for frame in given if frame.stamp >= behind["stamp"]]  # what the engine gives again
    assert [frame.data for frame, _ in unread(rest, LogPosition(**behind))] == [b"020000000", b"020000001"]


# --- what is used ----------------------------------------------------------------------------------------------------


def test_processors_in_use_are_counted_between_two_looks() -> None:
    second = AT + timedelta(seconds=2)
    first = points(None, AT, Use(1.0, 100), (), GpuUse())
    assert [(one.name, one.value) for one in first] == [("system.memory", 100.0)]
    found = points((AT, Use(1.0, 100)), second, Use(4.0, 200), (), GpuUse())
    assert {one.name: one.value for one in found} == {"system.memory": 200.0, "system.cpu": 1.5}


def test_the_memory_of_a_gpu_is_that_of_the_attempts_processes_or_all_of_the_gpu() -> None:
    gpus = [Gpu(uuid=uuid, name="X", memory_total=100, memory_used=50, utilisation=75) for uuid in ("a", "b")]
    seen = GpuUse(gpus, {"a": {7: 10, 8: 20, 9: 30}})
    found = points(None, AT, Use(0, 1, frozenset({7, 8})), ("a", "b", "gone"), seen)
    values = {one.name: one.value for one in found}
    assert values["system.gpu0.memory"] == 30.0
    assert values["system.gpu1.memory"] == 50.0
    assert values["system.gpu1.utilisation"] == 75.0
    assert "system.gpu2.memory" not in values


def test_an_engines_statistics_are_read_without_the_file_cache() -> None:
    stats = {
        "cpu_stats": {"cpu_usage": {"total_usage": 2_500_000_000}},
        "memory_stats": {"usage": 1000, "stats": {"total_inactive_file": 300}},
    }
    assert use_in_stats(stats) == Use(2.5, 700)
    assert use_in_stats({"memory_stats": {}, "cpu_stats": {}}) is None
    assert use_in_stats({}) is None


def test_control_groups_of_both_versions_are_read(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "memory/docker/c1").mkdir(parents=True)
    (old / "cpuacct/docker/c1").mkdir(parents=True)
    (old / "memory/docker/c1/memory.usage_in_bytes").write_text("1000\n")
    (old / "memory/docker/c1/memory.stat").write_text("cache 5\ntotal_inactive_file 400\n")
    (old / "memory/docker/c1/cgroup.procs").write_text("5\n6\n")
    (old / "cpuacct/docker/c1/cpuacct.usage").write_text("1500000000\n")
    (new / "system.slice/docker-c1.scope").mkdir(parents=True)
    (new / "system.slice/docker-c1.scope/cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (new / "system.slice/docker-c1.scope/memory.current").write_text("1000\n")
    (new / "system.slice/docker-c1.scope/memory.stat").write_text("anon 5\ninactive_file 400\n")
    (new / "system.slice/docker-c1.scope/cgroup.procs").write_text("5\n6\n")
    assert look.of_container("c1", old) == look.of_container("c1", new) == Use(1.5, 600, frozenset({5, 6}))
    assert look.of_container("c2", old) is None
