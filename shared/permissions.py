"""The broker's accounts, users and permissions, made from the channel table.

Three accounts are three walls. CTRL has the streams; EDGE (agents) and API (gateway, watchers) reach it through exports
alone, so a reply subject that they forge is rewritten at the wall and lands in nobody's stream. Inside an account every
user may publish and subscribe what the table says it sends and reads, and nothing else.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from shared.channels import (
    ACCOUNT_OF,
    CHANNELS,
    DEAD_LETTER,
    DLQ,
    FLEET,
    HEARTBEAT,
    JOBS,
    LEADER,
    LOGS,
    NOTIFY,
    REPLAY,
    SERVE,
    SNAPSHOT,
    TELL,
    Account,
    Channel,
    Service,
)
from shared.ids import TOKEN

AnyChannel = Channel[Any, Any]

#: The user that sets up streams and restores backups. It may do everything in CTRL; no service runs as it.
OPERATOR = "operator"
#: Durable consumers that each service works through.
CONSUMERS: Mapping[Service, tuple[tuple[str, str], ...]] = {
    Service.STORAGE: (
        (JOBS, "storage"),
        (LOGS, "storage-log"),
        (NOTIFY, "storage-delivery"),
        (FLEET, "storage-fleet"),
        (DLQ, "storage-dlq"),
    ),
    Service.NOTIFIER: ((JOBS, "notifier"), (NOTIFY, "deliver")),
}
#: Streams of which a service may read single messages and the last sequence.
LOOKS_UP: Mapping[Service, tuple[str, ...]] = {
    Service.SCHEDULER: (JOBS, SNAPSHOT, LEADER, FLEET, DLQ),
    Service.STORAGE: (JOBS, LOGS, NOTIFY, FLEET, DLQ),
    Service.NOTIFIER: (JOBS, NOTIFY, DLQ),
}
#: Streams that a service follows with consumers that it makes and removes itself.
FOLLOWS: Mapping[Service, tuple[str, ...]] = {Service.SCHEDULER: (JOBS, FLEET)}
#: What a service keeps in streams of its own; no other reads it, so the channel table does not have it.
KEEPS: Mapping[Service, tuple[str, ...]] = {
    Service.SCHEDULER: ("wherry.snapshot.>", "wherry.leader.>"),
}
#: Who may take a subject only as one of a queue group, and so never in place of the one that answers.
ONLY_IN_QUEUE: Mapping[tuple[str, Service], str] = {(HEARTBEAT.name, Service.STORAGE): "storage"}


#: Who answers nothing but these may do so by the broker's leave alone.
_ASKED_LITTLE = frozenset({REPLAY.name, SERVE.name, TELL.name})
#: An answer to each message, within so long.
RESPONDS = '\n          allow_responses: { max: 1, expires: "1m" }'


@dataclass(frozen=True, slots=True)
class User:
    """One credential. `publish` and `subscribe` are all that it may; None is no limit within its account.

    `responds`: besides, it may answer what reached it, once each, and no other inbox.
    """

    name: str
    account: Account
    publish: tuple[str, ...] | None
    subscribe: tuple[str, ...] | None
    responds: bool = False


@dataclass(frozen=True, slots=True)
class Passage:
    """One subject that passes the wall between `owner`, where it is exported, and `account`, which imports it.

    `kind` is "service" for what goes in (with its answer coming out), "stream" for what goes out.
    """

    kind: str
    subject: str
    account: Account
    owner: Account = Account.CTRL


def node_user(node_id: str) -> str:
    """Return the user of the agent on *node_id*."""
    return f"node-{node_id}"


def users(nodes: Iterable[str] = ()) -> tuple[User, ...]:
    """Return every user of a stack whose nodes have the ids *nodes*.

    Raises:
        ValueError: an id is not one plain token, and would widen what its user may do.

    """
    services = [service for service in ACCOUNT_OF if service is not Service.NODE_AGENT]
    agents = [_user(node_user(_token(node)), Service.NODE_AGENT, node) for node in nodes]
    return (
        *(_user(service.value, service) for service in services),
        User(OPERATOR, Account.CTRL, None, None),
        *agents,
    )


def passages() -> tuple[Passage, ...]:
    """Return what passes between the accounts, in the table's order."""
    found = [passage for channel in CHANNELS for passage in _passages(channel)]
    return tuple(dict.fromkeys(found))


def accounts_config(passwords: Mapping[str, str], nodes: Iterable[str] = ()) -> str:
    """Return nats-server configuration with all accounts and users.

    Args:
        passwords: in clear, by user name; one for each of `users(nodes)`.
        nodes: ids of the nodes that may join.

    Raises:
        KeyError: a user has no password.
        ValueError: a password or a node's id cannot be written into the configuration.

    """
    return _render(users(nodes), {name: _quoted(password) for name, password in passwords.items()})


def accounts_reference(nodes: Iterable[str] = ()) -> str:
    """Return the same with every password read from the server's environment, see `password_variable`."""
    known = users(nodes)
    return _render(known, {user.name: f"${password_variable(user.name)}" for user in known})


def password_variable(user: str) -> str:
    """Return the environment variable that holds *user*'s password, e.g. ``WHERRY_NATS_PASSWORD_NODE_LOCAL``."""
    return "WHERRY_NATS_PASSWORD_" + user.upper().replace("-", "_")


# --- what a user may do ------------------------------------------------------------------------------------------


def _user(name: str, service: Service, peer: str = "*") -> User:
    publish = [*_sends(service, peer), *_broker_calls(service), *KEEPS.get(service, ())]
    subscribe = [f"_INBOX.{name}.>", *_hears(service, peer)]
    answered = [channel.name for channel in CHANNELS if _answers(service, channel)]
    # Who is asked nothing else has no business in any other inbox: an agent least of all in another agent's.
    responds = bool(answered) and _ASKED_LITTLE.issuperset(answered)
    if answered and not responds:
        publish += ["_INBOX.>", "_R_.>"]
    return User(name, ACCOUNT_OF[service], _once(publish), _once(subscribe), responds)


def _sends(service: Service, peer: str) -> Iterator[str]:
    for channel in CHANNELS:
        if service in channel.sent_by:
            # Nobody writes a letter in another's name: it would be believed when it is replayed.
            reader = service.value if channel.name == DEAD_LETTER.name else "*"
            yield _subject(channel, service, peer, reader)


def _hears(service: Service, peer: str) -> Iterator[str]:
    """Yield what *service* subscribes to; what a stream keeps is read from the stream."""
    for channel in CHANNELS:
        if service in channel.read_by and channel.stream is None:
            queue = ONLY_IN_QUEUE.get((channel.name, service))
            subject = _subject(channel, service, peer, reader=service.value)
            yield f"{subject} {queue}" if queue else subject


def _answers(service: Service, channel: AnyChannel) -> bool:
    asked = channel.reply is not None and service in channel.read_by
    return asked and (channel.name, service) not in ONLY_IN_QUEUE


def _broker_calls(service: Service) -> Iterator[str]:
    for stream, durable in CONSUMERS.get(service, ()):
        yield f"$JS.API.CONSUMER.INFO.{stream}.{durable}"
        yield f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        yield f"$JS.ACK.{stream}.{durable}.>"
        yield f"$JS.ACK.*.*.{stream}.{durable}.>"  # with domain and account hash, the form of newer servers
    for stream in LOOKS_UP.get(service, ()):
        yield f"$JS.API.STREAM.INFO.{stream}"
        yield f"$JS.API.STREAM.MSG.GET.{stream}"
        yield f"$JS.API.DIRECT.GET.{stream}"
        yield f"$JS.API.DIRECT.GET.{stream}.>"
    for stream in FOLLOWS.get(service, ()):
        yield from (f"$JS.API.CONSUMER.{verb}.{stream}.>" for verb in ("CREATE", "DELETE", "INFO", "MSG.NEXT"))
        yield f"$JS.API.CONSUMER.CREATE.{stream}"  # a consumer without a name
        yield from (f"$JS.FC.{stream}.>", f"$JS.FC.*.*.{stream}.>")  # flow control, in both forms


def _subject(channel: AnyChannel, service: Service, peer: str, reader: str = "*") -> str:
    """Return the widest subject of *channel* that is *service*'s own on *peer*."""
    if Service.BROKER in channel.sent_by:  # a watcher listens to all of it at once
        return channel.template.partition("{")[0] + ">"
    mine = {"reader": reader}
    if service is Service.NODE_AGENT:
        mine |= {"node_id": peer, "kind": "node", "peer": peer}
    elif service is Service.GATEWAY:
        mine |= {"kind": "gateway"}
    return channel.wildcard(**{name: value for name, value in mine.items() if name in channel.params})


def _passages(channel: AnyChannel) -> Iterator[Passage]:
    inner = {service for service, account in ACCOUNT_OF.items() if account is Account.CTRL} | {Service.BROKER}
    if channel.read_by & inner or channel.stream:
        for sender in sorted(channel.sent_by - inner):
            yield Passage("service", _subject(channel, sender, "*"), ACCOUNT_OF[sender])
    if channel.sent_by & inner:
        for reader in sorted(channel.read_by - inner):
            yield Passage("stream", _subject(channel, reader, "*"), ACCOUNT_OF[reader])
    yield from _direct_passages(channel, inner)


def _direct_passages(channel: AnyChannel, inner: AbstractSet[Service]) -> Iterator[Passage]:
    """Yield what is asked of agents, or of the gateway, by those of the other account."""
    if channel.stream is None and channel.reply is not None and not (channel.read_by | channel.sent_by) & inner:
        for sender, reader in itertools.product(sorted(channel.sent_by), sorted(channel.read_by)):
            if ACCOUNT_OF[sender] is not ACCOUNT_OF[reader]:
                yield Passage("service", _subject(channel, sender, "*"), ACCOUNT_OF[sender], ACCOUNT_OF[reader])


# --- nats-server's configuration -----------------------------------------------------------------------------------


def _render(known: Iterable[User], passwords: Mapping[str, str]) -> str:
    known = tuple(known)
    parts = [_account(account, [u for u in known if u.account is account], passwords) for account in Account]
    head = "# Made from shared/channels.py by shared/permissions.py; do not edit.\n"
    return f"{head}accounts {{\n{''.join(parts)}}}\n"


def _account(account: Account, members: Iterable[User], passwords: Mapping[str, str]) -> str:
    lines = [f"  {account.value}: {{"]
    if account is Account.CTRL:
        lines += ["    jetstream: enabled"]
    if given := [p for p in passages() if p.owner is account]:
        lines += ["    exports: ["]
        lines += [f'      {{ {p.kind}: "{p.subject}", accounts: [{p.account.value}] }}' for p in given]
        lines += ["    ]"]
    if taken := [p for p in passages() if p.account is account]:
        lines += ["    imports: ["]
        lines += [f'      {{ {p.kind}: {{ account: {p.owner.value}, subject: "{p.subject}" }} }}' for p in taken]
        lines += ["    ]"]
    lines += ["    users: ["]
    lines += [_member(user, passwords[user.name]) for user in members]
    return "\n".join([*lines, "    ]", "  }", ""])


def _member(user: User, password: str) -> str:
    head = f'      {{ user: "{user.name}", password: {password}'
    if user.publish is None or user.subscribe is None:
        return head + " }"
    return (
        f"{head}, permissions: {{\n"
        f"          publish: {_only(user.publish)}\n"
        f"          subscribe: {_only(user.subscribe)}"
        f"{RESPONDS if user.responds else ''} }} }}"
    )


def _only(subjects: tuple[str, ...]) -> str:
    if not subjects:
        return '{ deny: [">"] }'
    return "{ allow: [\n" + "".join(f'            "{subject}"\n' for subject in subjects) + "          ] }"


def _quoted(password: str) -> str:
    if not password or not password.isascii() or not password.isprintable() or '"' in password or "\\" in password:
        raise ValueError("a password for NATS is printable ASCII without quotes and backslashes")
    return f'"{password}"'


def _token(node: str) -> str:
    if not TOKEN.match(node):
        raise ValueError(f"{node!r} cannot be a node's id")
    return node


def _once(subjects: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(subjects))
