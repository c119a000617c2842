"""Documents made from the channel table: AsyncAPI 3.0, the subjects page, and diagrams of states."""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from shared.channels import CHANNELS, Channel, Service
from shared.events import Event
from shared.model import Message
from shared.permissions import Passage, User, passages, users

Json = dict[str, Any]
AnyChannel = Channel[Any, Any]

_MADE = "<!-- Made by docs/generate.py; do not edit. -->"
_RAW: Json = {"type": "string", "format": "binary"}


def asyncapi(version: str) -> Json:
    """Return the AsyncAPI 3.0 document of everything that travels over NATS, as JSON values."""
    schemas = _Schemas()
    messages: Json = {}
    for channel in CHANNELS:
        messages[channel.name] = _message(channel, schemas)
        if channel.reply is not None:
            messages[_reply_name(channel)] = _reply(channel, schemas)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "wherry",
            "version": version,
            "description": "What wherry's services say to each other over NATS. Other systems subscribe to "
            "`wherry.feed.>` with the watcher's credential.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "nats": {
                "host": "{host}",
                "protocol": "nats",
                "variables": {"host": {"default": "127.0.0.1:4222", "description": "host and port of NATS"}},
            }
        },
        "channels": _channels(),
        "operations": _operations(),
        "components": {"messages": messages, "schemas": schemas.definitions()},
    }


def subjects_page() -> str:
    """Return the page with every subject, the walls and the users, as Markdown."""
    everybody = users(["NODE"])
    lines = [
        _MADE,
        "# Subjects",
        "",
        "Every subject on NATS, from `shared/channels.py`. A `{param}` is one token. What a stream keeps is durable;",
        "the rest is lost when nobody listens. Bodies are JSON; those with a type are CloudEvents 1.0 with the message",
        "as `data`.",
        "",
        "| subject | message | from | to | kept by | |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_row(channel) for channel in CHANNELS),
        "",
        "## Walls",
        "",
        "Accounts CTRL, EDGE and API share no subject but these. A service export rewrites the reply subject, so that",
        "a forged one leads nowhere.",
        "",
        "| subject | passes | |",
        "| --- | --- | --- |",
        *(f"| `{p.subject}` | {_direction(p)} | {p.kind} |" for p in passages()),
        "",
        "## Users",
        "",
        "Whatever is not listed is refused. `NODE` stands for the id of each node.",
        "",
        *(line for user in everybody for line in _user_lines(user)),
    ]
    return "\n".join(lines).rstrip() + "\n"


def state_diagram(moves: Mapping[Any, Mapping[str, Iterable[StrEnum]]], first: StrEnum) -> str:
    """Return a Mermaid diagram of *moves* (state, event, states that it may lead to), beginning at *first*."""
    lines = ["```mermaid", "stateDiagram-v2", f"    [*] --> {first}"]
    for state, by_event in moves.items():
        for target, events in _by_target(by_event).items():
            lines.append(f"    {state} --> {target}: {', '.join(events)}")
        if not by_event:
            lines.append(f"    {state} --> [*]")
    return "\n".join([*lines, "```"])


# --- AsyncAPI --------------------------------------------------------------------------------------------------------


class _Schemas:
    """Models that were referred to, and in the end their definitions."""

    def __init__(self) -> None:
        self._models: dict[str, type[BaseModel]] = {}

    def reference(self, model: type[Message]) -> Json:
        """Return the body of a channel as a reference."""
        return self._named(model.__name__, model)

    def event(self, model: type[Message], event_type: str) -> Json:
        """Return the CloudEvent that carries *model*."""
        envelope = Event[model]
        literal = "{" not in event_type
        pattern = event_type.replace(".", r"\.").replace("{event}", "[a-z_]+").replace("{verb}", "[a-z_]+")
        kind: Json = {"const": event_type} if literal else {"pattern": f"^{pattern}$"}
        return {"allOf": [self._named(envelope.__name__, envelope), {"properties": {"type": kind}}]}

    def definitions(self) -> Json:
        """Return every model and what it refers to, by name."""
        wanted = [(model, "validation") for model in self._models.values()]
        _, made = models_json_schema(wanted, ref_template="#/components/schemas/{model}")  # pyright: ignore[reportArgumentType]
        found: Json = made["$defs"]
        return dict(sorted(found.items()))

    def _named(self, name: str, model: type[BaseModel]) -> Json:
        self._models[name] = model
        plain = name.replace("[", "_").replace("]", "_")
        return {"$ref": f"#/components/schemas/{plain}"}


def _message(channel: AnyChannel, schemas: _Schemas) -> Json:
    made: Json = {"name": channel.name, "summary": channel.summary}
    if channel.raw_body:
        return made | {"contentType": "application/octet-stream", "payload": _RAW}
    if channel.event_type:
        payload = schemas.event(channel.message, channel.event_type)
        return made | {"contentType": "application/cloudevents+json", "payload": payload}
    return made | {"contentType": "application/json", "payload": schemas.reference(channel.message)}


def _reply(channel: AnyChannel, schemas: _Schemas) -> Json:
    made: Json = {"name": _reply_name(channel), "summary": f"The answer to {channel.name}."}
    if channel.raw_reply or channel.reply is None:
        return made | {"contentType": "application/octet-stream", "payload": _RAW}
    return made | {"contentType": "application/json", "payload": schemas.reference(channel.reply)}


def _channels() -> Json:
    found: Json = {}
    for channel in CHANNELS:
        found[channel.name] = {
            "address": channel.template,
            "description": channel.summary + (f" Kept by the stream {channel.stream}." if channel.stream else ""),
            "messages": {channel.name: {"$ref": f"#/components/messages/{channel.name}"}},
        }
        if channel.params:
            found[channel.name]["parameters"] = {name: _parameter(name) for name in channel.params}
        if channel.reply is not None:
            name = _reply_name(channel)
            found[name] = {"address": None, "messages": {name: {"$ref": f"#/components/messages/{name}"}}}
    return found


def _operations() -> Json:
    found: Json = {}
    for channel in CHANNELS:
        for service in sorted(channel.sent_by):
            found[f"{service}.send.{channel.name}"] = _operation("send", service, channel)
        for service in sorted(channel.read_by):
            found[f"{service}.receive.{channel.name}"] = _operation("receive", service, channel)
    return found


def _operation(action: str, service: Service, channel: AnyChannel) -> Json:
    made: Json = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel.name}"},
        "summary": channel.summary,
        "tags": [{"name": service.value}],
        "messages": [{"$ref": f"#/channels/{channel.name}/messages/{channel.name}"}],
    }
    if channel.reply is not None:
        name = _reply_name(channel)
        made["reply"] = {
            "address": {"location": "$message.header#/replyTo", "description": "the NATS reply subject"},
            "channel": {"$ref": f"#/channels/{name}"},
            "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        }
    return made


def _reply_name(channel: AnyChannel) -> str:
    return f"{channel.name}Reply"


def _parameter(name: str) -> Json:
    meanings = {
        "owner": "the id of the user whose job it is",
        "job_id": "the job's id",
        "node_id": "the node's id, which the broker pins to its credential",
        "attempt": "the number of the attempt, from 1",
        "event": "the last word of the subject: what happened",
        "verb": "what is wanted",
        "reader": "the service that could not take the message in",
        "kind": "gateway or node: who moves the bytes",
        "peer": "the id of that gateway or node",
    }
    return {"description": meanings[name]}


# --- Markdown --------------------------------------------------------------------------------------------------------


def _row(channel: AnyChannel) -> str:
    message = "raw bytes" if channel.raw_body else channel.message.__name__
    if channel.reply is not None:
        message += " → " + ("raw bytes" if channel.raw_reply else channel.reply.__name__)
    if channel.event_type:
        message += f"<br>`{channel.event_type}`"
    sent, read = (", ".join(sorted(services)) for services in (channel.sent_by, channel.read_by))
    return f"| `{channel.template}` | {message} | {sent} | {read} | {channel.stream or ''} | {channel.summary} |"


def _direction(passage: Passage) -> str:
    inwards = passage.kind == "service"
    return f"{passage.account} to {passage.owner}" if inwards else f"{passage.owner} to {passage.account}"


def _user_lines(user: User) -> list[str]:
    if user.publish is None or user.subscribe is None:
        return [f"### {user.name} ({user.account})", "", "Everything in its account.", ""]
    return [
        f"### {user.name} ({user.account})",
        "",
        "publishes " + (", ".join(f"`{subject}`" for subject in user.publish) or "nothing"),
        "",
        "subscribes to " + ", ".join(f"`{subject}`" for subject in user.subscribe),
        "",
    ]


def _by_target(by_event: Mapping[str, Iterable[StrEnum]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for event, targets in by_event.items():
        for target in sorted(targets):
            found.setdefault(target, []).append(event)
    return found
