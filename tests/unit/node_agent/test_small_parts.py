"""Endings, frames, archives, capacity, settings, endpoints, the journal."""

import hashlib
import io
import itertools
import json
import struct
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.node_agent.__main__ import trouble_with_controller
from services.node_agent.adapters.docker_endpoint import endpoints
from services.node_agent.adapters.host_psutil import Machine
from services.node_agent.adapters.journal import Journal, Outgoing
from services.node_agent.core import archive
from services.node_agent.core.attempt import Held, Phase
from services.node_agent.core.capacity import Share, parse_share
from services.node_agent.core.container import Key
from services.node_agent.core.effects import Drop, Save, SaveEpoch
from services.node_agent.core.ending import Outcome, failure_from, failure_of
from services.node_agent.core.frames import FrameParser, LogPosition, moment
from services.node_agent.ports import RuntimeFacts
from services.node_agent.settings import AgentSettings, controller_address, slug
from services.node_agent.shell.agent import offered
from services.node_agent.shell.output import in_messages
from shared.errors import Forbidden, WherryError
from shared.events import LogLine, OutputBatch
from shared.fleet import Gpu, Order
from shared.job import Failure
from shared.spec import GIB, JobSpec
from shared.states import AttemptEventName, EndReason

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("outcome", "reason", "words"),
    [
        (Outcome(1), "exit_code", "exit code 1."),
        (Outcome(137), "exit_code", "SIGKILL"),
        (Outcome(255), "exit_code", "255"),
        (Outcome(127), "command_not_found", "'frob', or one that it calls, was not found"),
        (Outcome(126), "command_not_found", "cannot be executed"),
        (Outcome(137, is_oom=True), "oom", "memory"),
        (Outcome(None, failure=Failure(reason=EndReason.NODE_LOST, message="gone")), "node_lost", "gone"),
    ],
)
def test_why_a_program_failed(outcome: Outcome, reason: str, words: str) -> None:
    failure = failure_of(outcome, "frob")
    assert failure
    assert failure.reason == reason
    assert words in failure.message


def test_exit_code_zero_is_no_failure_and_unknown_errors_are_the_machine_s() -> None:
    assert failure_of(Outcome(0), "") is None
    assert failure_from(WherryError("bad_source", "x")).reason == EndReason.BAD_SOURCE
    assert failure_from(WherryError("unavailable", "x")).reason == EndReason.RUNTIME_ERROR


def frame(stream: int, stamp: str, body: bytes) -> bytes:
    payload = stamp.encode() + b" " + body
    return struct.pack(">BxxxL", stream, len(payload)) + payload


STAMPS = [f"2026-01-01T00:00:00.00000000{n}Z" for n in (1, 1, 2, 2, 2, 3)]
LOG = b"".join(frame(1 + number % 2, stamp, b"line %d\n" % number) for number, stamp in enumerate(STAMPS))


@given(st.lists(st.integers(0, len(LOG)), max_size=6))
def test_frames_are_found_however_the_bytes_arrive(cuts: list[int]) -> None:
    places = sorted({0, len(LOG), *cuts})
    parser = FrameParser()
    frames = [f for start, end in itertools.pairwise(places) for f in parser.feed(LOG[start:end])]
    assert [(f.stream, f.stamp, f.data) for f in frames] == [
        ("oe"[number % 2], stamp, b"line %d\n" % number) for number, stamp in enumerate(STAMPS)
    ]


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="stream 7"):
        FrameParser().feed(frame(7, "x", b""))


@pytest.mark.parametrize("stop", range(len(STAMPS) + 1))
def test_reading_a_log_again_from_a_position_gives_the_rest_exactly(stop: int) -> None:
    frames = FrameParser().feed(LOG)
    first = LogPosition()
    assert [first.passed(f) for f in frames[:stop]] == [False] * stop
    second = LogPosition(**json.loads(json.dumps(first.saved())))
    served = [f for f in frames if f.stamp >= second.stamp]  # what the engine gives for `since`
    assert [f for f in served if not second.passed(f)] == frames[stop:]


def test_since_keeps_nanoseconds() -> None:
    assert LogPosition().since() is None
    assert LogPosition("2026-01-01T00:00:00.123456789Z", 1).since() == "1767225600.123456789"
    assert LogPosition("2026-01-01T00:00:00Z", 1).since() == "1767225600.000000000"
    assert moment("2026-01-01T00:00:00.123456789Z") == datetime(2026, 1, 1, 0, 0, 0, 123456, UTC)


@given(st.binary(max_size=2000), st.text("aüß/…", min_size=1, max_size=300).map(lambda name: f"x{name}y"))
def test_an_archive_in_pieces_is_a_tar(content: bytes, name: str) -> None:
    raw = archive.folder("d", 0o750) + archive.file(name, len(content), 0o755, 1_700_000_000)
    raw += content + archive.padding(len(content)) + archive.END
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        folder, file = tar.getmembers()
        assert (folder.name, folder.isdir(), folder.mode, folder.uid, folder.gid) == ("d", True, 0o750, 65534, 65534)
        assert (file.name, file.mode, file.mtime, file.uid) == (name, 0o755, 1_700_000_000, 65534)
        read = tar.extractfile(file)
        assert read
        assert read.read() == content


def test_capacity_is_read_and_bounds_the_machine() -> None:
    assert parse_share("") == Share()
    assert parse_share("cpus=2, memory=4GiB,disk=1TB,gpus=1") == Share(2.0, 4 * GIB, 10**12, 1)
    for bad in ("cpus", "cpus=x", "cpus=0", "ram=4GiB", "memory=much", "gpus=-1"):
        with pytest.raises(ValueError, match=r"\S"):
            parse_share(bad)
    host = Machine(cpus=8, memory=16 * GIB, disk=100 * GIB, arch="amd64", os="linux", boot_id="b")
    gpus = tuple(Gpu(uuid=f"GPU-{n}", name="g", memory_total=1) for n in range(2))
    engine = RuntimeFacts("docker", cpus=4, memory=8 * GIB)  # as in Docker Desktop's own machine
    everything = offered(host, [engine], Share(), gpus)
    assert (everything.cpus, everything.memory, everything.disk, everything.gpus) == (4, 8 * GIB, 100 * GIB, gpus)
    part = offered(host, [], parse_share("cpus=16,memory=4GiB,gpus=1"), gpus)
    assert (part.cpus, part.memory, part.gpus) == (8, 4 * GIB, gpus[:1])


def test_settings_come_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERRY_WORKER_NAME", "Big Box_7.example")
    monkeypatch.setenv("WHERRY_TAGS", "gpu, lab ,")
    monkeypatch.delenv("WHERRY_NODE_ID", raising=False)
    settings = AgentSettings()
    assert (settings.node, settings.name, settings.tag_list) == (
        "big-box-7-example",
        "Big Box_7.example",
        ("gpu", "lab"),
    )
    assert settings.runtime_list == ("docker",)
    monkeypatch.setenv("WHERRY_NODE_ID", "Not A Slug")
    with pytest.raises(ValidationError):
        AgentSettings()


@pytest.mark.parametrize(("text", "expected"), [("ÄÖ", "node"), ("-a-", "a"), ("a" * 60, "a" * 40), ("a.b", "a-b")])
def test_slugs(text: str, expected: str) -> None:
    assert slug(text) == expected


@pytest.mark.parametrize("text", ["# c\n\nnats://h:1\n", '{"controller": "nats://h:1"}', "h:1", '"nats://h:1"'])
def test_a_controller_file_names_an_address(text: str) -> None:
    assert controller_address(text) == "nats://h:1"


@pytest.mark.parametrize("text", ["", "# only\n", "{}", "[1]"])
def test_a_controller_file_without_an_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no address"):
        controller_address(text)


def test_a_controller_that_refuses_a_node_says_which_credential_it_wants() -> None:
    settings = AgentSettings().model_copy(update={"worker_name": "Edge 1", "nats_user": "watcher"})
    said = trouble_with_controller(settings, Forbidden("The broker refuses it."))
    assert said.startswith("refuses watcher: set WHERRY_NATS_USER=node-edge-1 and")
    assert "WHERRY_NATS_PASSWORD" in said
    nobody = settings.model_copy(update={"nats_user": None})
    assert trouble_with_controller(nobody, Forbidden("The broker refuses it.")).startswith("refuses whoever")


def test_of_a_controller_that_does_not_answer_it_is_said_which_address_is_meant() -> None:
    said = trouble_with_controller(AgentSettings(), TimeoutError())
    assert said.startswith("does not answer. --controller HOST:PORT is the address of its NATS server")
    assert trouble_with_controller(AgentSettings(), WherryError("unavailable", "no route")).startswith(
        "does not answer: no route."
    )


def test_a_docker_host_that_is_set_is_the_only_place(tmp_path: Path) -> None:
    found = endpoints({"DOCKER_HOST": "tcp://dead:1"}, tmp_path, 1000)
    assert [(place.url, place.why) for place in found] == [("tcp://dead:1", "DOCKER_HOST")]
    secured = endpoints({"DOCKER_HOST": "tcp://h:2376", "DOCKER_TLS_VERIFY": "1"}, tmp_path, 1000)
    assert (secured[0].certificates, secured[0].verify) == (tmp_path / ".docker", True)


def test_the_current_context_is_the_only_place(tmp_path: Path) -> None:
    config = tmp_path / ".docker"
    meta = config / "contexts/meta" / hashlib.sha256(b"far").hexdigest()
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Endpoints": {"docker": {"Host": "ssh://far"}}}))
    (config / "config.json").write_text(json.dumps({"currentContext": "far"}))
    assert [place.url for place in endpoints({}, tmp_path, 1000)] == ["ssh://far"]
    assert [place.url for place in endpoints({"DOCKER_HOST": "tcp://h:1"}, tmp_path, 1000)] == ["tcp://h:1"]
    assert endpoints({"DOCKER_HOST": "tcp://h:1", "DOCKER_CONTEXT": "far"}, tmp_path, 1000)[0].url == "ssh://far"
    assert [place.url for place in endpoints({"DOCKER_CONTEXT": "lost"}, tmp_path, 1000)] == [""]


def test_else_the_usual_sockets_are_tried(tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text("{broken")
    urls = [place.url for place in endpoints({}, tmp_path, 1000)]
    assert urls[:2] == ["unix:///var/run/docker.sock", "unix:///run/user/1000/docker.sock"]
    assert f"unix://{tmp_path}/.colima/default/docker.sock" in urls
    assert "unix:///r/docker.sock" in [place.url for place in endpoints({"XDG_RUNTIME_DIR": "/r"}, tmp_path, 1000)]


def held(job_id: str, phase: Phase = Phase.RUNNING) -> Held:
    return Held(
        order=Order(job_id=job_id, owner_id="u", attempt=1, spec=JobSpec(image="i"), seq=1), phase=phase, since=AT
    )


async def test_the_journal_gives_back_what_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "journal.sqlite")
    report = Outgoing("r1", Key("j1", 1), AttemptEventName.STARTING, b"{}")
    later = Outgoing("r2", Key("j1", 1), AttemptEventName.RUNNING, b"{1}")
    await journal.write([Save(held("j1", Phase.ACCEPTED)), Save(held("j2")), SaveEpoch(7), report])
    await journal.write([Save(held("j1")), later, report, Outgoing("r3", Key("j2", 1), AttemptEventName.RUNNING, b"")])
    await journal.sent(report)
    await journal.write([Drop(Key("j2", 1))])
    journal.close()
    again = Journal(tmp_path / "new" / "journal.sqlite")
    kept = again.load()
    again.close()
    assert (kept.held, kept.epoch, kept.outbox) == ([held("j1")], 7, [later])
    assert kept.dropped == [Key("j2", 1)]


async def test_a_write_to_the_journal_is_all_or_none(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.sqlite")
    with pytest.raises(Exception, match="NOT NULL"):
        await journal.write([SaveEpoch(1), Outgoing("r", Key("j", 1), AttemptEventName.RUNNING, None)])  # pyright: ignore[reportArgumentType]
    assert journal.load().epoch == 0
    journal.close()


def test_a_batch_is_cut_until_it_fits_into_a_message() -> None:
    lines = tuple(LogLine(n=n, t=AT, x="\x01" * 16_000) for n in range(1, 65))  # JSON writes six bytes for each
    parts = in_messages(OutputBatch(lines=lines))
    assert len(parts) > 1
    assert all(len(part.to_bytes()) <= 900 * 1024 for part in parts)
    assert tuple(line for part in parts for line in part.lines) == lines
    assert in_messages(OutputBatch()) == []
