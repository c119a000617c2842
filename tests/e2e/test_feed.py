"""Another system listens with plain NATS: it sees what was accepted, as CloudEvents, and nothing else."""

import asyncio
import contextlib
import json
from pathlib import Path

import jsonschema
import nats

from tests.e2e.stack import ENDS, ROOT, Stack


def event_schema() -> dict:
    """The schema of the feed's messages in docs/asyncapi.json, with its references resolvable."""
    document = json.loads((ROOT / "docs/asyncapi.json").read_text())
    reference = next(iter(document["channels"]["jobFeed"]["messages"].values()))["$ref"]
    name = reference.rsplit("/", 1)[1]
    payload = document["components"]["messages"][name]["payload"]
    return {**payload, "components": document["components"]}


def broker(stack: Stack) -> tuple[str, str]:
    ports = json.loads((stack.home / "ports.json").read_text())
    secrets = json.loads((Path(stack.home) / "nats" / "passwords.json").read_text())
    return f"nats://127.0.0.1:{ports['nats']}", secrets["watcher"]


async def test_a_watcher_sees_the_main_jobs_events_as_valid_cloudevents(stack: Stack) -> None:
    url, password = broker(stack)
    client = await nats.connect(
        url, user="watcher", password=password, inbox_prefix=b"_INBOX.watcher", connect_timeout=60
    )
    subscription = await client.subscribe("wherry.feed.>")
    await client.flush(60)
    job_id = await asyncio.to_thread(stack.submit, stack.spec("echo hello"))
    schema, names = event_schema(), []
    while not set(names) & ENDS:
        message = await subscription.next_msg(timeout=240)
        if message.subject.split(".")[3] != job_id:
            continue
        event = json.loads(message.data)
        jsonschema.validate(event, schema)
        assert event["specversion"] == "1.0"
        assert event["subject"] == job_id
        assert int(message.headers["Nats-Sequence"]) > 0
        names.append(message.subject.split(".")[4])
    await client.close()
    assert names[0] == "created"
    assert "placed" in names
    assert names[-1] == "succeeded"
    stored = [event["type"].split(".")[-2] for event in await asyncio.to_thread(stack.events, job_id)]
    assert stored == names  # nothing that the stream refused, nothing missing


async def test_a_watcher_may_neither_write_nor_listen_elsewhere(stack: Stack) -> None:
    url, password = broker(stack)
    errors: asyncio.Queue[str] = asyncio.Queue()

    async def note(error: Exception) -> None:
        errors.put_nowait(str(error))

    client = await nats.connect(
        url, user="watcher", password=password, error_cb=note, max_reconnect_attempts=0, connect_timeout=60
    )
    await client.publish("wherry.job.u.j.created", b"{}")
    await client.publish("wherry.feed.u.j.created", b"{}")
    await client.subscribe("wherry.storage.>")
    await client.flush(60)
    async with asyncio.timeout(60):
        refused = [await errors.get() for _ in range(3)]
    assert all("permissions violation" in text.lower() for text in refused)
    await client.close()


async def test_a_client_without_a_credential_is_refused(stack: Stack) -> None:
    url, _ = broker(stack)
    async with asyncio.timeout(60):
        while b"Authentication Timeout" in (said := await said_to_a_stranger(int(url.rpartition(":")[2]))):
            continue  # the server waits two seconds for a client's first words, and these came later
    assert b"Authorization Violation" in said


async def said_to_a_stranger(port: int) -> bytes:
    """Return what the server says to a client that names no user."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    assert (await reader.readline()).startswith(b"INFO")
    writer.write(b'CONNECT {"verbose":false}\r\nPING\r\n')
    said = await reader.readline()
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return said
