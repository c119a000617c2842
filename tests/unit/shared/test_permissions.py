import re

import pytest

from shared.channels import ACCOUNT_OF, CHANNELS, Account, Service
from shared.permissions import (
    CONSUMERS,
    accounts_config,
    accounts_reference,
    node_user,
    passages,
    password_variable,
    users,
)
from shared.streams import DURABLES

USERS = {user.name: user for user in users(["n1", "n2"])}


def test_every_service_has_a_user_in_its_account():
    for service, account in ACCOUNT_OF.items():
        name = "node-n1" if service is Service.NODE_AGENT else service.value
        assert USERS[name].account is account


def test_only_the_operator_has_no_limits_and_it_is_in_ctrl():
    unlimited = {user.name for user in USERS.values() if user.publish is None or user.subscribe is None}
    assert unlimited == {"operator"}
    assert USERS["operator"].account is Account.CTRL


@pytest.mark.parametrize("user", [user for user in USERS.values() if user.subscribe], ids=lambda user: user.name)
def test_a_user_has_one_inbox_of_its_own(user):
    inboxes = [subject for subject in user.subscribe if subject.startswith("_INBOX")]
    assert inboxes == [f"_INBOX.{user.name}.>"]


@pytest.mark.parametrize("user", [user for user in USERS.values() if user.publish is not None], ids=lambda u: u.name)
def test_nobody_may_publish_everything(user):
    assert not {">", "*", "wherry.>", "$JS.>", "$JS.API.>"} & set(user.publish)


@pytest.mark.parametrize("name", ["gateway", "watcher", "node-n1"])
def test_nobody_outside_ctrl_reaches_jetstream_itself_or_an_inbox(name):
    assert [subject for subject in USERS[name].publish if subject.startswith(("$", "_"))] == []


def test_a_node_may_say_and_hear_only_what_has_its_own_token():
    for subject in (*USERS["node-n1"].publish, *USERS["node-n1"].subscribe):
        assert "n1" in re.split(r"[.-]", subject)
        assert "n2" not in subject


def test_the_gateway_cannot_take_a_nodes_part_in_a_transfer():
    blobs = [subject for subject in USERS["gateway"].publish if subject.startswith("wherry.blob.")]
    assert blobs
    assert all(subject.startswith("wherry.blob.gateway.") for subject in blobs)


def test_the_watcher_hears_the_feed_and_says_nothing():
    assert USERS["watcher"].publish == ()
    assert USERS["watcher"].subscribe == ("_INBOX.watcher.>", "wherry.feed.>")


def test_storage_takes_heartbeats_only_in_its_queue_group():
    assert "wherry.node.*.heartbeat storage" in USERS["storage"].subscribe
    assert "wherry.node.*.heartbeat" not in USERS["storage"].subscribe
    assert "wherry.node.*.heartbeat" in USERS["scheduler"].subscribe


def test_the_notifier_answers_nobody_and_may_publish_to_no_inbox():
    assert [subject for subject in USERS["notifier"].publish if subject.startswith("_")] == []


def test_what_crosses_a_wall_is_a_service_inwards_and_a_stream_outwards():
    by_subject = {(p.subject, p.account): p.kind for p in passages()}
    assert by_subject["wherry.job.*.*.created", Account.API] == "service"
    assert by_subject["wherry.node.*.heartbeat", Account.EDGE] == "service"
    assert by_subject["wherry.node.*.wake", Account.EDGE] == "stream"
    assert by_subject["wherry.feed.>", Account.API] == "stream"
    assert ("wherry.storage.auth.login", Account.EDGE) not in by_subject


def test_requests_to_replicas_pass_from_the_gateway_to_agents_who_answer_them_and_nobody_else():
    [passage] = [p for p in passages() if p.subject.startswith("wherry.serve.")]
    assert (passage.kind, passage.owner, passage.account) == ("service", Account.EDGE, Account.API)
    agent = USERS["node-n1"]
    assert "wherry.serve.n1.*" in agent.subscribe
    assert agent.responds
    assert not [subject for subject in agent.publish if subject.startswith(("_INBOX", "_R_", "wherry.serve"))]


def test_what_stays_in_ctrl_has_no_passage():
    crossing = {p.subject for p in passages()}
    inner = [c for c in CHANNELS if all(ACCOUNT_OF.get(s) is Account.CTRL for s in c.sent_by | c.read_by)]
    assert inner
    assert not crossing & {channel.wildcard() for channel in inner}


@pytest.mark.parametrize("node", ["*", ">", "a.b", "", "n 1", "n1\n", '"'])
def test_a_node_id_that_would_widen_a_subject_is_refused(node):
    with pytest.raises(ValueError, match="cannot be a node's id"):
        users([node])


@pytest.mark.parametrize("password", ["", 'a"b', "a\\b", "a\nb", "ü"])
def test_a_password_that_would_break_out_of_the_configuration_is_refused(password):
    with pytest.raises(ValueError, match="password"):
        accounts_config(dict.fromkeys(USERS, password), ["n1", "n2"])


def test_a_user_without_a_password_is_an_error():
    with pytest.raises(KeyError):
        accounts_config({name: "x" for name in USERS if name != "storage"}, ["n1", "n2"])


def test_a_password_that_looks_like_a_variable_stays_a_password():
    assert 'password: "$HOME"' in accounts_config(dict.fromkeys(USERS, "$HOME"), ["n1", "n2"])


def test_the_reference_names_a_variable_for_each_user():
    text = accounts_reference(["local"])
    assert f"${password_variable(node_user('local'))}" in text
    assert password_variable("node-local") == "WHERRY_NATS_PASSWORD_NODE_LOCAL"
    assert text.count("password: $WHERRY_NATS_PASSWORD_") == len(users(["local"]))


def test_every_durable_consumer_has_one_service_that_reads_it():
    mine = sorted(consumer for consumers in CONSUMERS.values() for consumer in consumers)
    assert mine == sorted((durable.stream, durable.name) for durable in DURABLES)


def test_nobody_writes_or_hears_dead_letters_in_anothers_name():
    for name in ("scheduler", "storage", "notifier"):
        user = next(one for one in users() if one.name == name)
        assert [one for one in user.publish or () if one.startswith("wherry.dlq")] == [f"wherry.dlq.{name}"]
        assert [one for one in user.subscribe or () if one.startswith("wherry.replay")] == [f"wherry.replay.{name}"]
