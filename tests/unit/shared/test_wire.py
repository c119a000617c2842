from datetime import UTC, datetime

import pytest

from shared import channels, wire
from shared.errors import Conflict, ErrorBody, FieldProblem, NotFound, Unavailable, WherryError
from shared.events import CancelRequested, Event, JobChanged

AT = datetime(2026, 1, 2, tzinfo=UTC)
EVENT = Event[CancelRequested](
    id="e1", source="/wherry/gateway", type="t", time=AT, subject="j1", data=CancelRequested(by="u", at=AT)
)


def test_the_most_fixed_channel_is_found_for_a_subject():
    assert wire.find_channel("wherry.job.o.j.created") == (channels.JOB_CREATED, {"owner": "o", "job_id": "j"})
    assert wire.find_channel("wherry.job.o.j.placed") == (
        channels.JOB_CHANGED,
        {"owner": "o", "job_id": "j", "event": "placed"},
    )
    assert wire.find_channel("wherry.storage.ping") == (channels.PING, {})
    assert wire.find_channel("wherry.job.o.j.a.b") == (None, {})
    assert wire.find_channel("other") == (None, {})


@pytest.mark.parametrize("channel", channels.CHANNELS, ids=lambda channel: channel.name)
def test_every_channel_of_the_table_is_found_again(channel):
    params = dict.fromkeys(channel.params, "x1")
    assert wire.find_channel(channel.subject(**params)) == (channel, params)


@pytest.mark.parametrize(
    "reply",
    [
        "$JS.ACK.WHERRY_JOBS.storage.3.77.5.1767312000000000000.9",
        "$JS.ACK.hub.acchash.WHERRY_JOBS.storage.3.77.5.1767312000000000000.9",
        "$JS.ACK.hub.acchash.WHERRY_JOBS.storage.3.77.5.1767312000000000000.9.random",
    ],
)
def test_a_delivery_is_read_in_all_forms(reply):
    assert wire.parse_ack(reply) == wire.Delivery(3, 77, 5, AT, 9)


@pytest.mark.parametrize("reply", ["", "_INBOX.x.1", "$JS.ACK.short", "$JS.FC.WHERRY_JOBS.c.x.y.z.a.b"])
def test_other_replies_are_no_delivery(reply):
    assert wire.parse_ack(reply) is None


def test_a_record_becomes_its_subject_headers_and_body():
    record = wire.Record(channels.CANCEL_REQUESTED, {"owner": "o", "job_id": "j1"}, EVENT, ("wherry.job.*.j1.>", 7))
    entry = wire.entry(record)
    assert entry.subject == "wherry.request.o.j1.cancel"
    assert entry.headers == {wire.MSG_ID: "e1", wire.EXPECT_FILTER: "wherry.job.*.j1.>", wire.EXPECT_SEQ: "7"}
    assert entry.expects == "wherry.job.*.j1.>"
    assert entry.unconditional().headers == {wire.MSG_ID: "e1"}
    assert entry.unconditional().expects is None
    assert Event[CancelRequested].from_bytes(entry.body) == EVENT


def test_user_text_never_becomes_a_wildcard():
    with pytest.raises(ValueError, match="cannot be part"):
        wire.entry(wire.Record(channels.CANCEL_REQUESTED, {"owner": "*", "job_id": "j1"}, EVENT))


def test_a_received_event_is_read_by_its_channel():
    found = wire.received("wherry.request.o.j1.cancel", EVENT.to_bytes(), {"Nats-Sequence": "12"})
    assert (found.event, found.data, found.problem, found.seq) == (EVENT, EVENT.data, None, 12)


def test_a_body_of_another_shape_is_a_problem_and_no_exception():
    found = wire.received("wherry.job.o.j1.created", b'{"id": 1}', None)
    assert (found.event, found.data) == (None, None)
    assert found.problem
    assert found.channel is channels.JOB_CREATED


async def test_what_did_not_come_from_a_consumer_cannot_be_settled():
    with pytest.raises(TypeError, match="nothing to settle"):
        await wire.received("wherry.storage.ping", b"{}", None).ack()


async def test_settling_sends_the_servers_verbs():
    sent: list[tuple[bytes, bool]] = []

    async def settle(verb: bytes, wait: bool) -> None:  # noqa: FBT001
        sent.append((verb, wait))

    found = wire.received("wherry.storage.ping", b"{}", None, settle=settle)
    await found.ack()
    await found.ack_sync()
    await found.nak()
    await found.nak(1.5)
    await found.in_progress()
    assert sent == [
        (b"+ACK", False),
        (b"+ACK", True),
        (b"-NAK", False),
        (b'-NAK {"delay": 1500000000}', False),
        (b"+WPI", False),
    ]


def test_headers_are_read_with_and_without_a_space():
    assert wire.parse_headers(b"NATS/1.0\r\nA: 1\r\nB:two: 2\r\n\r\n") == {"A": "1", "B": "two: 2"}


@pytest.mark.parametrize(
    ("code", "kind"), [("not_found", NotFound), ("conflict", Conflict), ("unavailable", Unavailable)]
)
def test_an_error_comes_back_as_its_class(code, kind):
    error = wire.error_from(ErrorBody(code=code, message="m").to_bytes())
    assert (type(error), error.code, error.message) == (kind, code, "m")


def test_an_error_keeps_its_fields_and_an_unreadable_one_is_internal():
    fields = (FieldProblem(field="a.b", message="m"),)
    error = wire.error_from(ErrorBody(code="conflict", message="m", fields=fields).to_bytes())
    assert (type(error), error.fields) == (WherryError, fields)
    assert wire.error_from(b"<html>").code == "internal"


def test_the_envelope_of_a_message_is_made_once():
    assert wire.event_model(JobChanged) is wire.event_model(JobChanged)
