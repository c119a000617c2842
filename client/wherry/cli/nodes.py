"""``wherry nodes``: the machines, and what administrators want of them."""

import time
from http import HTTPStatus
from typing import Annotated

import typer

from client.wherry import models
from client.wherry.cli import tables
from client.wherry.cli.console import Output, as_json, now
from client.wherry.cli.session import LONG_PATIENCE_S, connect
from client.wherry.cli.words import plain
from client.wherry.client import Client
from client.wherry.errors import WherryError

#: The machine is not what was asked for.
EXIT_FAILED = 1
_LOOK_S = 0.5
_ASKED = "asked for; see `wherry nodes show {}`"
#: Where a machine is once it is what was asked for, and what ends the waiting besides.
_DONE = {"drain": "drained", "cordon": "cordoned", "undrain": "active"}

app = typer.Typer(help="List the machines: what each has, whether it gets work, and why not.")

NodeName = Annotated[str, typer.Argument(metavar="NODE", help="The machine's id or name.", show_default=False)]
Reason = Annotated[str, typer.Option("--reason", help="Why, for whoever looks at it.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when it is done.")]
Force = Annotated[bool, typer.Option("--force", help="Also while a job may run there that must never run twice.")]


@app.callback(invoke_without_command=True)
def listed(ctx: typer.Context) -> None:
    """List the machines: what each has, whether it gets work, and why not."""
    if ctx.invoked_subcommand is not None:
        return
    output: Output = ctx.obj
    with connect() as client:
        found = client.nodes()
    if output.json:
        output.document({"nodes": [as_json(node) for node in found]})
    elif found:
        output.out.print(tables.nodes(found, now()))
    else:
        output.note("no machines have joined yet; `wherry-agent` adds one")


def clusters(ctx: typer.Context) -> None:
    """List the clusters: machines with one function, and what those that are online offer together."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.clusters()
    if output.json:
        output.document({"clusters": [as_json(one) for one in found]})
    else:
        output.out.print(tables.clusters(found))


@app.command()
def show(ctx: typer.Context, node: NodeName) -> None:
    """Show a machine: what it has, uses and runs, whether it gets work and why not, and its history."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.node(node)
    if output.json:
        output.document(found)
    else:
        output.out.print(tables.node(found, now()))


@app.command()
def drain(
    ctx: typer.Context,
    node: NodeName,
    *,
    deadline: Annotated[
        str | None, typer.Option(help="After so long (10m) what still runs is moved; else it may run to its end.")
    ] = None,
    reason: Reason = "",
    wait: Wait = False,
) -> None:
    """Empty a machine: nothing new, and what still runs at the deadline starts again elsewhere."""
    with connect(patience_s=LONG_PATIENCE_S) as client:
        asked = client.drain(node, deadline=deadline, reason=reason)
        _report(ctx.obj, client, asked, "drain", wait=wait)


@app.command()
def undrain(ctx: typer.Context, node: NodeName, *, reason: Reason = "", wait: Wait = False) -> None:
    """Let a machine that was drained or cordoned get work again."""
    with connect(patience_s=LONG_PATIENCE_S) as client:
        _report(ctx.obj, client, client.undrain(node, reason=reason), "undrain", wait=wait)


@app.command()
def cordon(ctx: typer.Context, node: NodeName, *, reason: Reason = "", wait: Wait = False) -> None:
    """Give a machine nothing new; what it runs goes on."""
    with connect(patience_s=LONG_PATIENCE_S) as client:
        _report(ctx.obj, client, client.cordon(node, reason=reason), "cordon", wait=wait)


@app.command()
def prefetch(
    ctx: typer.Context,
    node: NodeName,
    what: Annotated[str, typer.Argument(metavar="WHAT", help="dataset:NAME, artifact:ID or an image.")],
    *,
    raw: Annotated[bool, typer.Option("--raw", help="For jobs that want a zip as it is.")] = False,
) -> None:
    """Let a machine bring a dataset, an artifact or an image before a job wants it."""
    with connect(patience_s=LONG_PATIENCE_S) as client:
        _report(ctx.obj, client, client.prefetch(node, what, unpack=not raw), "prefetch", wait=False)


@app.command()
def forget(
    ctx: typer.Context, node: NodeName, *, reason: Reason = "", force: Force = False, wait: Wait = False
) -> None:
    """Forget a machine that is lost or has left. One that comes back joins anew."""
    output: Output = ctx.obj
    with connect() as client:
        asked = client.forget_node(node, reason=reason, force=force)
        refusal = _kept(client, asked) if wait else None
    if output.json:
        output.document(asked)
    if refusal is not None:
        output.note(f"node {plain(asked.name)} is not forgotten: {plain(refusal.reason)}")
        raise typer.Exit(EXIT_FAILED)
    output.note(f"node {plain(asked.name)} is forgotten" if wait else _ASKED.format(asked.id))


def _report(output: Output, client: Client, asked: models.Node, verb: str, *, wait: bool) -> None:
    if wait:
        asked = _until(client, asked, _DONE[verb], output)
    if output.json:
        output.document(asked)
    elif wait:
        output.note(f"node {plain(asked.name)} is {asked.duty}")
    else:
        output.note(_ASKED.format(asked.id))


def _kept(client: Client, asked: models.Node) -> models.NodeChange | None:
    """Return once a machine is forgotten; where it is not after all, what its history says of that."""
    before = asked.history or ()
    while True:
        try:
            history = client.node(asked.id).history or ()
        except WherryError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        for one in history:
            if one.what == "not_forgotten" and one not in before:
                return one
        time.sleep(_LOOK_S)


def _until(client: Client, node: models.Node, duty: str, output: Output) -> models.Node:
    """Return the machine once its duty is *duty*, saying how many jobs it still runs."""
    said = -1
    while (node := client.node(node.id)).duty != duty:
        if node.duty == "draining" and node.running != said:
            said = node.running
            output.note(f"{plain(node.name)} still runs {said} of its jobs")
        time.sleep(_LOOK_S)
    return node
