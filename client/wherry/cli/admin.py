"""``wherry users``, ``dead-letters`` and ``retention``: what administrators look after."""

from typing import Annotated

import typer

from client.wherry.cli import tables
from client.wherry.cli.console import Output, as_json, now
from client.wherry.cli.session import connect
from client.wherry.cli.words import plain, size

users = typer.Typer(help="List the users; `quota` shows and sets what one may hold.")
letters = typer.Typer(help="List what services could not take in; `replay` has one tried again.")


@users.callback(invoke_without_command=True)
def list_users(ctx: typer.Context) -> None:
    """List the users; `quota` shows and sets what one may hold."""
    if ctx.invoked_subcommand is not None:
        return
    output: Output = ctx.obj
    with connect() as client:
        found = client.users()
    if output.json:
        output.document({"users": [as_json(user) for user in found]})
    else:
        output.out.print(tables.users(found))


@users.command()
def quota(  # noqa: PLR0913 - each option of the command is one
    ctx: typer.Context,
    user: Annotated[str, typer.Argument(help="Whose; yours if not given.")] = "me",
    *,
    cpus: Annotated[float | None, typer.Option(help="CPUs that the jobs may hold together.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory, e.g. 64GiB.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs.")] = None,
    running: Annotated[int | None, typer.Option(help="Jobs on machines at a time.")] = None,
    queued: Annotated[int | None, typer.Option(help="Jobs that may wait; more are refused.")] = None,
    share: Annotated[float | None, typer.Option(help="Weight in the fair share; 1 if not given.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take all limits away.")] = False,
) -> None:
    """Show a user's limits and what they hold; with options set them (administrators): those not given stay."""
    output: Output = ctx.obj
    given = {
        name: value
        for name, value in (
            ("cpus", cpus), ("memory", memory), ("gpus", gpus), ("running", running), ("queued", queued),
            ("share", share),
        )
        if value is not None
    }  # fmt: skip
    if remove and given:
        raise typer.BadParameter("--remove takes all limits away: give it alone")
    with connect() as client:
        if remove:
            client.remove_quota(user)
        found = client.quota(user)
        if given:
            kept = found.quota.model_dump(include=set(type(found.quota).model_fields)) if found.quota else {}
            found = client.set_quota(user, kept | given)
    if output.json:
        output.document(found)
    else:
        output.out.print(tables.quota(found))


@letters.callback(invoke_without_command=True)
def list_letters(
    ctx: typer.Context,
    *,
    reader: Annotated[str | None, typer.Option(help="Only of this service, e.g. scheduler.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
) -> None:
    """List what services could not take in, newest first; with --json whole (administrators)."""
    if ctx.invoked_subcommand is not None:
        return
    output: Output = ctx.obj
    with connect() as client:
        found = client.dead_letters(reader=reader, limit=limit)
    if output.json:
        output.document({"dead_letters": [as_json(one) for one in found]})
    elif found:
        output.out.print(tables.dead_letters(found, now()))
    else:
        output.note("no dead letters: every service has taken in all that it was sent")


@letters.command()
def replay(
    ctx: typer.Context,
    letter: Annotated[str, typer.Argument(metavar="ID", help="The letter's id.", show_default=False)],
) -> None:
    """Hand a dead letter to its reader again, once what kept it from reading is mended."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.replay(letter)
    if output.json:
        output.document(found)
    output.note(f"handed to {plain(found.reader)} again; if it fails once more, `wherry dead-letters` says so")


def retention(
    ctx: typer.Context,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed, and why.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=0, max=1000, help="Name at most so many things.")] = 100,
) -> None:
    """Remove what is kept no longer: old ended jobs, unused uploads, lines of old logs (administrators)."""
    output: Output = ctx.obj
    with connect() as client:
        run = client.retention(dry_run=dry_run, limit=limit)
    if output.json:
        output.document(run)
        return
    for item in run.items:
        output.out.print(plain(f"{item.kind:9}  {item.id}  {size(item.bytes):>10}  {item.reason}"))
    if run.more:
        output.note("and more, which are not named")
    for done, sums in (("removed", run.removed), ("hidden, to be removed later", run.hidden)):
        for kind, total in sorted(sums.items()):
            output.note(f"{'would be ' if dry_run else ''}{done}: {total.count} {kind}, {size(total.bytes)}")
    if not run.removed and not run.hidden:
        output.note("nothing: all that is there is needed, or not old enough")
    if run.error:
        output.note(plain(f"it stopped before its end: {run.error}"))
