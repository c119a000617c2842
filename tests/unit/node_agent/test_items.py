"""The items of a worker: which it is given, what counts of what it says, and the shell program around its command."""

import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.node_agent.adapters import worker_program
from services.node_agent.adapters.journal import Journal, KeepItems, Outgoing
from services.node_agent.core import archive
from services.node_agent.core import effects as e
from services.node_agent.core import facts as f
from services.node_agent.core.at_work import Given
from services.node_agent.core.container import Key
from services.node_agent.core.items import Again, Begun, Items, Left, file_name, head, is_plain, slot_of
from services.node_agent.core.output import Answer, OutputParser
from shared.fleet import ItemOrder, Order
from shared.ids import new_id
from shared.job import ITEM_FILES_MAX, BlobRef, Failure
from shared.spec import ItemSpec, JobSpec, Map
from shared.states import AttemptEventName, EndReason
from tests.unit.node_agent.test_machine import FACTS, KEY, TO_RUNNING, acts, after, reports

T0 = datetime(2026, 1, 1, tzinfo=UTC)
BLOB = BlobRef(sha256="0" * 64, size=1)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def orders(count: int, **spec: Any) -> list[ItemOrder]:
    return [ItemOrder(id=new_id("i"), spec=ItemSpec(name=f"{number}", **spec)) for number in range(count)]


def staged(wanted: list[ItemOrder], timeout_s: float = 60) -> Items:
    items = Items(timeout_s)
    items.want(wanted)
    items.are_staged(items.to_stage(1000, 1 << 40))
    return items


def ok(one: ItemOrder, seconds: float) -> Answer:
    return Answer(one.id, is_ok=True, reason="", at=at(seconds))


# --- which items the program has -------------------------------------------------------------------------------


def test_a_line_says_which_item_the_program_was_at() -> None:
    first, second = Given(new_id("i"), "x-0"), Given(new_id("i"), "y-0")
    parser = OutputParser(is_worker=True)
    parser.at_work.has((first, second))
    text = f"a\n::item {first.id} ok\nb\n::item {second.id} failed no\nc\n".encode()
    assert [(line.x, line.i) for line in parser.feed("o", T0, text).lines] == [
        ("a", first.id), ("b", second.id), ("c", ""),
    ]  # fmt: skip
    parser.at_work.has((first, second))  # nobody has heard of the answers yet
    assert [line.i for line in parser.feed("o", T0, b"d\n").lines] == [""]
    parser.at_work.has((Given(first.id, "x-1"),))
    assert [line.i for line in parser.feed("o", T0, b"e\n").lines] == [first.id]
    assert '"i"' not in OutputParser().feed("o", T0, b"f\n").lines[0].to_bytes().decode()


def test_a_slow_program_has_one_item_at_a_time_and_a_quick_one_several() -> None:
    wanted = orders(30)
    items = staged(wanted)
    assert [one.id for one in items.give(at(0))] == [wanted[0].id]
    assert items.give(at(1)) == []
    items.answer(ok(wanted[0], 0.1))
    assert [one.id for one in items.give(at(0.1))] == [one.id for one in wanted[1:9]]
    items.answer(ok(wanted[1], 5))
    assert items.give(at(5)) == [], "the last one took long: what is not begun may go to another worker"


def test_what_is_not_begun_and_not_wanted_any_more_is_dropped_and_what_is_begun_stays() -> None:
    wanted = orders(3)
    items = staged(wanted)
    items.give(at(0))
    dropped, over = items.want([wanted[2]])
    assert (dropped, over) == ([slot_of(wanted[1].id, 0)], [])
    assert [one.id for one in items.open()] == [wanted[0].id]
    assert list(items.waiting) == [slot_of(wanted[2].id, 0)]


def test_an_item_that_is_wanted_again_and_again_is_begun_once_and_a_new_try_of_it_anew() -> None:
    (one,) = orders(1)
    items = staged([one])
    items.give(at(0))
    items.answer(Answer(one.id, is_ok=False, reason="no", at=at(1)))
    items.reported(items.unreported(10))
    items.want([one])
    assert items.to_stage(10, 10) == []
    items.want([one.model_copy(update={"tries": 1})])
    assert [again.tries for again in items.to_stage(10, 10)] == [1]


def test_an_end_is_kept_until_the_log_has_it_and_nobody_wants_the_item_any_more() -> None:
    (one,) = orders(1)
    items = staged([one])
    items.give(at(0))
    assert items.untold() == (one.id,)
    items.answer(ok(one, 1))
    assert items.untold() == (one.id,)
    items.reported(items.unreported(10))
    assert items.untold() == ()
    assert items.want([]) == ([], [])
    items.acknowledged()
    assert items.want([one]) == ([], [])
    assert items.want([]) == ([], [slot_of(one.id, 0)])
    assert items.begun == {}


def test_only_the_first_answer_for_an_item_that_the_program_has_counts() -> None:
    first, second = orders(2)
    items = staged([first, second])
    items.give(at(0))
    assert items.answer(ok(second, 1)) is None, "it was not given yet"
    ended = items.answer(Answer(first.id, is_ok=False, reason="why", at=at(2)))
    assert ended is not None
    assert ended.error == Failure(reason=EndReason.ITEM_FAILED, message="why")
    assert (ended.started_at, ended.ended_at) == (at(0), at(2))
    assert items.answer(ok(first, 3)) is None


def test_an_item_is_overdue_by_when_the_program_came_to_it_and_somebody_listened() -> None:
    wanted = orders(9)
    items = staged(wanted, timeout_s=10)
    items.give(at(0))
    items.answer(ok(wanted[0], 0.1))
    items.give(at(0.1))
    items.answer(ok(wanted[1], 9))
    assert items.overdue(at(18.9)) is None
    resumed = Items(10, {one.slot: one for one in items.open()})
    resumed.watched_from(at(100))
    assert resumed.overdue(at(109)) is None
    stuck = items.overdue(at(19.1))
    assert stuck is not None
    assert (stuck.id, stuck.error and stuck.error.reason) == (wanted[2].id, EndReason.ITEM_TIMEOUT)
    assert stuck in items.unreported(10)


def test_few_items_and_few_bytes_wait_in_the_workspace() -> None:
    wanted = orders(10, size=100)
    items = Items(60)
    items.want(wanted)
    assert [one.id for one in items.to_stage(3, 1000)] == [one.id for one in wanted[:3]]
    assert [one.id for one in items.to_stage(9, 250)] == [one.id for one in wanted[:2]]
    assert [one.id for one in items.to_stage(9, 10)] == [wanted[0].id], "one that is too large has to come some time"
    items.are_staged(wanted[:2])
    assert items.to_stage(9, 250) == []


def test_it_is_done_once_it_is_closed_and_all_is_answered() -> None:
    (one,) = orders(1)
    items = staged([one])
    items.give(at(0))
    items.is_closing = True
    assert not items.is_done
    items.answer(ok(one, 1))
    assert items.is_done


def test_what_is_said_again_is_said_ever_more_rarely() -> None:
    again = Again()
    said = [second for second in range(4000) if again.is_due(second)]
    assert said[:4] == [0, 5, 15, 35]
    assert len(said) < 15


def test_a_worker_that_is_stuck_is_stopped_and_says_which_item_it_was() -> None:
    machine = after(*TO_RUNNING)
    assert acts(machine.handle(f.Stuck(KEY, "i1"), T0)) == ["Save", "Stop"]
    assert machine.handle(f.Stuck(KEY, "i1"), T0) == []
    machine.handle(FACTS["exited"], T0)
    ((_, finished),) = reports(machine.handle(FACTS["collected"], T0))
    assert finished.error.reason is EndReason.ITEM_TIMEOUT
    assert "i1" in finished.error.message


# --- what it leaves --------------------------------------------------------------------------------------------


def left(*paths: str) -> list[str]:
    one = Left(1000)
    for path in paths:
        assert one.takes(path, 1)
        one.add(path, BLOB)
    return [file.path for file in one.listed()]


def test_a_file_has_its_plain_name_and_files_of_a_folder_are_called_as_in_there() -> None:
    assert left("cat.jpg") == ["cat.jpg"]
    assert left("cat.jpg/a", "cat.jpg/deep/b") == ["a", "deep/b"]
    assert left("cat.jpg/a", "more.txt") == ["cat.jpg/a", "more.txt"]


def test_an_item_that_leaves_too_much_has_failed_and_left_nothing() -> None:
    one = Left(1000)
    assert all(one.takes(f"{number}", 1) for number in range(ITEM_FILES_MAX))
    assert not one.takes("one more", 1)
    assert (one.listed(), one.failure and one.failure.reason) == ((), EndReason.ITEM_FAILED)
    other = Left(10)
    assert not other.takes("large", 11)
    assert other.failure
    assert other.failure.reason is EndReason.DISK


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a/b/cat.jpg", "cat.jpg"), ("..", "item"), ("/", "item"), (r"C:\x\cat.png", "cat.png"), (".hidden", ".hidden")],
)
def test_a_file_is_called_as_its_item(name: str, expected: str) -> None:
    assert file_name(name) == expected


@given(st.text(min_size=1, max_size=255))
def test_whatever_an_item_is_called_its_file_has_a_name_that_fits(name: str) -> None:
    found = file_name(name.encode("utf-8", "ignore").decode() or "x")
    assert found not in ("", ".", "..")
    assert "/" not in found
    assert len(found.encode()) <= 255


def test_a_path_below_the_inputs_does_not_lead_out_of_them() -> None:
    assert is_plain("photos/a b.jpg")
    assert not any(map(is_plain, ("/etc/passwd", "../x", "a/../b", "a//b", ".", "a/.")))


# --- what it says ----------------------------------------------------------------------------------------------


def test_answers_are_taken_out_of_a_workers_output_and_of_no_others() -> None:
    id_ = new_id("i")
    text = f"before\n::item {id_} ok\r\nopen\x1e\n\x1e\n::item {id_} failed no  good \n::item x ok\n".encode()
    parsed = OutputParser(is_worker=True).feed("o", T0, text)
    assert [(line.n, line.x) for line in parsed.lines] == [(1, "before"), (2, "open"), (3, "::item x ok")]
    assert [(one.id, one.is_ok, one.reason) for one in parsed.answers] == [(id_, True, ""), (id_, False, "no  good")]
    for parser, stream in ((OutputParser(), "o"), (OutputParser(is_worker=True), "e")):
        assert not parser.feed(stream, T0, text).answers


def test_answers_are_found_in_a_flood_and_the_lines_keep_their_numbers() -> None:
    id_, parser = new_id("i"), OutputParser(is_worker=True)
    text = b"x\n" * 5000 + f"::item {id_} ok\n".encode() + b"x\n" * 5000
    parsed = parser.skim("o", T0, text, 1000)
    assert [one.id for one in parsed.answers] == [id_]
    assert parsed.lines[-1].n == 10_000


@given(
    st.sampled_from("oe"),
    st.lists(
        st.sampled_from(["a", "\n", "long line " * 5, "\x1e\n", "::item {} ok\n", "::item {} begins\n"]), max_size=40
    ),
    st.integers(0, 100),
)
def test_what_is_skimmed_of_a_worker_has_the_same_numbers_answers_and_items(
    stream: str, pieces: list[str], last: int
) -> None:
    chunk = "".join(piece.format(new_id("i")) for piece in pieces).encode()
    whole, skimmed = OutputParser(is_worker=True), OutputParser(is_worker=True)
    expected, found = whole.feed(stream, T0, chunk), skimmed.skim(stream, T0, chunk, last)
    assert found.answers == expected.answers
    assert skimmed.saved() == whole.saved()
    assert set(found.lines) <= set(expected.lines)


def test_of_which_item_the_standard_error_is_is_said_there_for_the_two_are_not_read_in_step() -> None:
    parser, one, other = OutputParser(is_worker=True), new_id("i"), new_id("i")
    parser.at_work.has((Given(other, "y-0"),))
    text = f"of none\n\x1e\n::item {one} begins\nbad\nopen\x1e\n::item {other} begins\nworse\n".encode()
    said = [(line.n, line.x, line.i) for line in parser.feed("e", T0, text).lines]
    assert said == [(1, "of none", ""), (2, "bad", one), (3, "open", one), (4, "worse", other)]
    again = OutputParser.restored(parser.saved(), is_worker=True)
    assert again.feed("e", T0, b"still\n").lines[0].i == other
    flood = b"x\n" * 5000 + f"::item {one} begins\n".encode() + b"x\n" * 5000
    last = again.skim("e", T0, flood, 1000).lines[-1]
    assert (last.n, last.i) == (10_005, one)


# --- the journal -----------------------------------------------------------------------------------------------


async def test_the_journal_keeps_items_until_they_are_over_or_the_attempt_is_dropped(tmp_path: Path) -> None:
    key, other = Key("j1", 1), Key("j2", 1)
    first, second = (Begun(id=new_id("i"), tries=0, given_at=T0) for _ in range(2))
    ended = second.model_copy(update={"ended_at": at(1)})
    journal = Journal(tmp_path / "journal.sqlite")
    await journal.write([KeepItems(key, [first, second]), KeepItems(other, [first])])
    await journal.write([KeepItems(key, [ended], [first.slot])])
    await journal.write([e.Drop(other), Outgoing("x", key, AttemptEventName.ITEMS, b"{}")])
    journal.close()
    journal = Journal(tmp_path / "journal.sqlite")
    kept = journal.load()
    journal.close()
    assert kept.items == {key: [ended]}
    assert [one.name for one in kept.outbox] == [AttemptEventName.ITEMS]


async def test_after_a_restart_the_program_is_at_the_item_that_it_was_given_first(tmp_path: Path) -> None:
    wanted = sorted(orders(4), key=lambda one: one.id, reverse=True)  # as no list of them by name would have them
    items = staged(wanted)
    begun = items.give(at(0))
    items.answer(ok(wanted[0], 0.1))
    begun += items.give(at(0.1))
    journal = Journal(tmp_path / "journal.sqlite")
    await journal.write([KeepItems(KEY, begun)])
    journal.close()
    journal = Journal(tmp_path / "journal.sqlite")
    kept = journal.load().items[KEY]
    journal.close()
    again = Items(60, {one.slot: one for one in kept})
    assert [one.id for one in again.open()] == [one.id for one in wanted]
    for one in wanted[:-1]:
        again.answer(ok(one, 1))
    again.want(more := orders(1))
    again.are_staged(more)
    assert again.give(at(1))[0].place > max(one.place for one in begun)


# --- the shell program -----------------------------------------------------------------------------------------


def shells() -> list[list[str]]:
    busybox = shutil.which("busybox")
    return [["/bin/sh"], *([[busybox, "sh"]] if busybox else [])]


class Shell:
    """The shell program in a workspace of its own, told by lines as the agent tells it."""

    def __init__(self, shell: list[str], folder: Path, mode: str, command: list[str]) -> None:
        self.workspace = folder / "workspace"
        self.inputs = folder / "inputs"
        for path in (self.workspace, self.inputs, folder / "run"):
            path.mkdir()
        where = {"WHERRY_WORKSPACE": str(self.workspace), "WHERRY_INPUTS": str(self.inputs)}
        worker_program.write(folder / "run", self.workspace)
        self.process = subprocess.Popen(
            [*shell, str(folder / "run" / worker_program.FILE), mode, *command], cwd=self.workspace,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
            env={"PATH": os.environ["PATH"]} | where,
        )  # fmt: skip

    def put(self, one: ItemOrder, body: bytes | None = None) -> str:
        size = None if body is None else len(body)
        parts = head(one, str(self.workspace), str(self.inputs), size)
        parts += [] if body is None else [body, archive.padding(len(body))]
        with tarfile.open(fileobj=io.BytesIO(b"".join([*parts, archive.END]))) as tar:
            tar.extractall(self.workspace, filter="data")
        return slot_of(one.id, one.tries)

    def tell(self, *lines: str) -> None:
        assert self.process.stdin
        self.process.stdin.write("".join(f"{line}\n" for line in lines).encode())
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().decode().rstrip("\n")

    def end(self) -> None:
        """Kill what is left of it: as an ended container takes along what runs in it."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with self.process:
            pass

    def rest(self) -> tuple[str, int]:
        said, _ = self.process.communicate(timeout=20)
        return said.decode(), self.process.returncode

    def out(self, slot: str) -> dict[str, bytes]:
        root = self.workspace / ".items" / "out" / slot
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


Start = Callable[..., Shell]


@pytest.fixture(params=shells(), ids=" ".join)
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    started: list[Shell] = []

    def begin(mode: str, words: str) -> Shell:
        started.append(Shell(request.param, tmp_path, mode, ["sh", "-c", words]))
        return started[-1]

    yield begin
    for one in started:
        one.end()


def test_a_command_runs_once_for_each_item_however_often_it_is_told(start: Start) -> None:
    worker = start("each", 'cat; tr a-z A-Z <"$WHERRY_IN" >"$WHERRY_OUT"; printf "$WHERRY_WORKER"')
    (one,) = orders(1)
    slot = worker.put(one, b"text")
    worker.tell("give i-none", f"give {slot}", f"give {slot}", "", "nonsense x", "close")
    assert worker.rest() == (f"\x1e\n::item {one.id} begins\neach\x1e\n::item {one.id} ok\n", 0)
    assert worker.out(slot) == {"0": b"TEXT"}


def test_a_command_that_fails_or_is_not_there_fails_its_item_only(start: Start) -> None:
    worker = start("each", '[ -z "$WHERRY_IN" ] || exit 7; cat "$WHERRY_ITEM_PARAMS"')
    first, second = ItemOrder(id=new_id("i"), spec=ItemSpec(path="in/x y")), *orders(1, params={"a": "ü"})
    (worker.inputs / "in").mkdir()
    third = ItemOrder(id=new_id("i"), spec=ItemSpec(path="in/none"))
    (worker.inputs / "in" / "x y").write_text("")
    worker.tell(*(f"give {worker.put(one)}" for one in (first, second, third)), "close")
    said, code = worker.rest()
    assert code == 0
    assert said.replace("\x1e\n", "").split("\n") == [
        f"::item {first.id} begins",
        f"::item {first.id} failed exit code 7",
        f"::item {second.id} begins",
        json.dumps({"a": "ü"}),
        f"::item {second.id} ok",
        f"::item {third.id} failed there is no file in/none",
        "",
    ]


def test_a_warm_command_gets_lines_of_json_and_the_end_of_its_input(start: Start) -> None:
    worker = start("warm", 'while read -r line; do printf "got %s\\n" "$line"; done; exit 3')
    one, two = orders(2, params={"text": "back \\ slash, 'quotes', größe\nnew line"})
    slots = [worker.put(one, b"x"), worker.put(two)]
    worker.tell(*(f"give {slot}" for slot in slots))
    for order, has_file in ((one, True), (two, False)):
        line = json.loads(worker.line().removeprefix("got "))
        assert (line["item"], line["name"], line["params"]) == (order.id, order.spec.name, order.spec.params)
        assert (Path(line["in"]).read_bytes() if has_file else line["in"]) == (b"x" if has_file else None)
        assert Path(line["out"]).parent.is_dir()
    worker.tell(f"forget {slots[0]}", "close")
    assert worker.rest() == ("", 3)
    assert sorted(path.name for path in (worker.workspace / ".items" / "in").iterdir()) == [slots[1]]


def test_a_warm_command_that_ends_by_itself_ends_the_worker_with_its_code(start: Start) -> None:
    worker = start("warm", "exit 5")
    assert worker.process.wait(20) == 5


def test_a_worker_that_is_told_to_stop_takes_its_command_along(start: Start) -> None:
    words = 'trap "echo bye; exit 0" TERM; echo up; i=0; while [ $i -lt 200 ]; do sleep 0.1; i=$((i+1)); done'
    worker = start("each", words)
    (one,) = orders(1)
    worker.tell(f"give {worker.put(one)}")
    assert [worker.line() for _ in range(3)][-1] == "up"  # after what says which item begins
    worker.process.terminate()
    assert worker.rest() == ("bye\n", 143)


def test_an_image_without_a_shell_of_words_is_run_by_its_own_entry_point() -> None:
    spec = JobSpec(image="i")
    order = Order(job_id="j1", owner_id="u1", attempt=1, seq=1, spec=spec, map=Map(warm=True))
    body = worker_program.as_worker({"Image": "i"}, order, "/run/wherry", {"Entrypoint": ["prog"], "Cmd": ["--x"]})
    assert body["Entrypoint"] == ["/bin/sh", "/run/wherry/worker.sh", "warm", "prog", "--x"]
    assert (body["Cmd"], body["OpenStdin"], body["StdinOnce"]) == ([], True, False)
    given_ = order.model_copy(update={"spec": JobSpec(image="i", command="a b"), "map": Map()})
    body = worker_program.as_worker({}, given_, "/run/wherry", {"Entrypoint": ["prog"]})
    assert body["Entrypoint"][2:] == ["each", "sh", "-c", "a b"]
