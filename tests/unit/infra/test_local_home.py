import base64
import hashlib
import hmac
import json
import stat
from pathlib import Path

import pytest

from infra.local.demo import signed
from infra.local.home import Home, identity
from infra.local.programs import STOP_ORDER, Addresses, kind_of, services
from shared.permissions import users

WHERE = Addresses("nats://127.0.0.1:1", "mongodb://127.0.0.1:2", 8080, 3, 4)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "wherry")


def test_an_identity_is_made_once_and_kept(home: Home):
    first = identity(home, {})
    assert identity(home, {"WHERRY_ADMIN_PASSWORD": "later"}) == first
    assert set(first.nats) == {user.name for user in users(["local"])}
    assert len(set(first.nats.values())) == len(first.nats)


def test_what_the_user_sets_at_the_first_start_is_taken(home: Home):
    env = {"WHERRY_ADMIN_USER": "ada", "WHERRY_ADMIN_PASSWORD": "secret", "WHERRY_NATS_PASSWORD_STORAGE": "given"}
    made = identity(home, env)
    assert (made.admin, made.password, made.nats["storage"]) == ("ada", "secret", "given")


def test_credentials_have_todays_address_and_only_their_user_reads_them(home: Home):
    identity(home, {"WHERRY_PORT": "1234"})
    identity(home, {"WHERRY_PORT": "4321"})
    assert json.loads(home.credentials.read_text())["url"] == "http://127.0.0.1:4321"
    for file in (home.credentials, home.root / "stack.json", home.root / "nats" / "passwords.json"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_each_service_has_its_own_password_and_nobody_elses(home: Home):
    who = identity(home, {})
    for program in services(home, who, WHERE, "process", {}):
        user = program.env["WHERRY_NATS_USER"]
        assert program.env["WHERRY_NATS_PASSWORD"] == who.nats[user]
        others = {password for name, password in who.nats.items() if name != user}
        assert not others & set(program.env.values())
        assert ("WHERRY_MONGO_URL" in program.env) == (program.name == "storage")


def test_every_service_has_a_place_in_the_stop_order(home: Home):
    stopped = [name for stage in STOP_ORDER for name in stage]
    assert sorted(stopped) == sorted(
        [*(p.name for p in services(home, identity(home, {}), WHERE, "process", {})), "nats", "mongo", "sinks"]
    )


def test_mail_goes_to_the_stacks_own_sink_only_where_there_is_no_server(home: Home):
    who = identity(home, {})
    own = {p.name: p.env for p in services(home, who, WHERE, "process", {})}["notifier"]
    assert (own["WHERRY_SMTP_PORT"], own["WHERRY_WEBHOOK_ALLOW"]) == ("4", "127.0.0.1:3")
    given = {"WHERRY_SMTP_HOST": "mail.example", "WHERRY_WEBHOOK_ALLOW": "10.0.0.1:80"}
    theirs = Addresses(WHERE.nats, WHERE.mongo, 8080, 3, None)
    env = {p.name: p.env for p in services(home, who, theirs, "process", given)}["notifier"]
    assert "WHERRY_SMTP_PORT" not in env
    assert env["WHERRY_WEBHOOK_ALLOW"] == "10.0.0.1:80,127.0.0.1:3"


def test_a_signature_of_another_secret_or_body_is_refused():
    key = b"k" * 32
    secret = "whsec_" + base64.b64encode(key).decode()
    right = base64.b64encode(hmac.new(key, b"id1.1700000000.{}", hashlib.sha256).digest()).decode()
    headers = {"Webhook-Id": "id1", "Webhook-Timestamp": "1700000000", "Webhook-Signature": f"v1,AAAA v1,{right}"}
    assert signed(headers, "{}", secret)
    assert not signed(headers, "{ }", secret)
    assert not signed(headers, "{}", "whsec_" + base64.b64encode(b"x" * 32).decode())
    assert not signed({}, "{}", secret)


def test_more_nodes_are_agents_with_credentials_and_folders_of_their_own(home: Home):
    env = {"WHERRY_MORE_NODES": "b, c,b"}
    who = identity(home, env)
    agents = [p for p in services(home, who, WHERE, "process", env) if kind_of(p.name) == "node_agent"]
    assert [p.env["WHERRY_NODE_ID"] for p in agents] == ["local", "b", "c"]
    assert [p.env["WHERRY_NATS_USER"] for p in agents] == ["node-local", "node-b", "node-c"]
    assert len({p.env["WHERRY_DATA_DIR"] for p in agents}) == len({p.env["WHERRY_NATS_PASSWORD"] for p in agents}) == 3
    assert all(p.argv[-1] == "services.node_agent" for p in agents)


def test_other_nodes_have_accounts_and_no_agents_here(home: Home):
    env = {"WHERRY_MORE_NODES": "b", "WHERRY_OTHER_NODES": "c, b ,d"}
    who = identity(home, env)
    agents = [p.env["WHERRY_NODE_ID"] for p in services(home, who, WHERE, "process", env) if "node_agent" in p.name]
    assert agents == ["local", "b"]
    assert {f"node-{node}" for node in ("local", "b", "c", "d")} <= set(who.nats)
