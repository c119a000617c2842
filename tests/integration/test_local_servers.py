"""The two servers as the local stack starts them."""

import asyncio
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from infra.local.ports import claim, free_port, is_free, kept_port
from infra.local.servers import MongoServer, NatsServer, ServerFailedError


@pytest.fixture(scope="module")
def mongo(folder: Path) -> Iterator[MongoServer]:
    with MongoServer(folder, cache_gb=0.25, oplog_mb=64) as server:
        yield server


def count(server: MongoServer) -> int:
    with MongoClient(server.url, serverSelectionTimeoutMS=90_000) as client:
        return client["test"]["things"].count_documents({})


def test_nats_keeps_its_port_and_what_was_published_over_a_kill(tmp_path: Path):
    async def publish() -> int:
        client = await nats.connect(server.url)
        js = client.jetstream()
        await js.add_stream(name="S", subjects=["s.>"])
        seq = (await js.publish("s.1", b"x")).seq
        await client.close()
        return seq

    with NatsServer(tmp_path) as server:
        assert asyncio.run(publish()) == 1
        port = server.port
        server.kill()
        assert not server.running
        server.start()
        assert server.port == port
        assert asyncio.run(publish()) == 2
    assert not server.running


def test_nats_says_what_is_wrong_with_its_configuration(tmp_path: Path):
    with pytest.raises(ServerFailedError, match="ended with 1"):
        NatsServer(tmp_path, "nonsense { ").start()


def test_nats_writes_its_passwords_where_only_its_user_reads(tmp_path: Path):
    with NatsServer(tmp_path):
        assert stat.S_IMODE((tmp_path / "nats.conf").stat().st_mode) == 0o600


def test_mongod_takes_transactions_and_keeps_data_over_a_restart_and_a_kill(mongo: MongoServer):
    with MongoClient(mongo.url) as client, client.start_session() as session, session.start_transaction():
        client["test"]["things"].insert_one({"_id": 1}, session=session)
    mongo.stop()
    mongo.start()
    assert count(mongo) == 1
    mongo.kill()
    mongo.start()
    assert count(mongo) == 1


def test_mongod_lets_nobody_in_without_the_password(mongo: MongoServer):
    with MongoClient(f"mongodb://127.0.0.1:{mongo.port}/?directConnection=true") as client:
        with pytest.raises(OperationFailure, match="requires authentication"):
            client["test"]["things"].find_one()
        with pytest.raises(OperationFailure):
            client["admin"].command("createUser", "thief", pwd="x", roles=["root"])
    for name in ("mongo.key", "mongo.password"):
        assert stat.S_IMODE((mongo.home / name).stat().st_mode) == 0o600


def test_mongod_comes_back_under_another_port_when_its_own_is_taken(tmp_path: Path):
    first = MongoServer(tmp_path, cache_gb=0.25, oplog_mb=64).start()
    with MongoClient(first.url) as client:
        client["test"]["things"].insert_one({})
    first.stop()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", first.port))
        thief.listen()
        with MongoServer(tmp_path, cache_gb=0.25, oplog_mb=64) as second:
            assert second.port != first.port
            assert count(second) == 1


def test_a_port_is_kept_while_it_is_free(tmp_path: Path):
    file = tmp_path / "ports.json"
    port = kept_port(file, "a")
    assert kept_port(file, "a") == port
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        assert kept_port(file, "a") != port


def test_a_claimed_port_is_given_to_nobody_though_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mine = next(port for port in range(19_000, 20_000) if is_free(port) and claim(port))
    offered = iter([mine, mine, mine + 1, *range(10_000, 20_000)])
    monkeypatch.setattr("infra.local.ports.random.randrange", lambda *_: next(offered))
    assert kept_port(tmp_path / "ports.json", "nats") != mine


def test_a_free_port_can_be_bound():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))
