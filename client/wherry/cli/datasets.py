"""``wherry datasets``: names for files that jobs have as inputs, with versions."""

import os
from pathlib import Path
from typing import Annotated

import typer

from client.wherry import config
from client.wherry.cli import tables
from client.wherry.cli.console import Output, as_json, now
from client.wherry.cli.session import LONG_PATIENCE_S, connect
from client.wherry.cli.words import plain, size

app = typer.Typer(help="Name files that jobs have as inputs: NAME, or NAME@VERSION.", no_args_is_help=True)

Ref = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The dataset.", show_default=False)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The dataset's name.", show_default=False)]
Description = Annotated[str | None, typer.Option("--description", "-d", help="What is in it.")]
Labels = Annotated[list[str] | None, typer.Option("--label", "-l", help="A label; may be repeated.")]
Shared = Annotated[bool | None, typer.Option("--shared/--private", help="Whether others may use it.")]


@app.command()
def put(
    ctx: typer.Context,
    name: Name,
    source: Annotated[
        str, typer.Argument(metavar="FILE|FOLDER|ARTIFACT|JOB/PATH", help="What is in it.", show_default=False)
    ],
    *,
    description: Description = None,
    label: Labels = None,
    shared: Shared = None,
) -> None:
    """Make a dataset or its next version: of a file, of a folder (as a zip), or of artifact:ID or job:ID/PATH."""
    output: Output = ctx.obj
    notes = config.config_file(os.environ).parent / "uploads"
    stored_there = source.startswith(("artifact:", "job:"))
    with connect(patience_s=LONG_PATIENCE_S) as client, output.transfer() as bar:
        task = bar.add_task("sending", total=None, visible=not stored_there)
        made = client.put_dataset(
            name,
            source if stored_there else Path(source),
            description=description,
            labels=label,
            shared=shared,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            notes=notes,
        )
    if output.json:
        output.document(made)
        return
    output.out.print(f"{made.name}@{made.version}", markup=False)
    if made.is_new is False:
        output.note("these bytes were there already")
    output.note(f"{size(made.size)}, sha256 {made.sha256}")


@app.command("list")
def listed(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(help="Words in its name, description or labels.")] = None,
    *,
    owner: Annotated[str | None, typer.Option(help="A user's name, or me.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 50,
) -> None:
    """List datasets that you may use, by name."""
    output: Output = ctx.obj
    with connect() as client:
        found = list(client.datasets(search=" ".join(words or ()), owner=owner, limit=limit))
    if output.json:
        output.document({"datasets": [as_json(one) for one in found]})
    elif found:
        output.out.print(tables.datasets(found, now()))
    else:
        output.note("there are none; `wherry datasets put NAME FILE` makes one")


@app.command()
def show(ctx: typer.Context, dataset: Ref) -> None:
    """Show a dataset and its versions."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.dataset(dataset)
    if output.json:
        output.document(found)
    else:
        output.out.print(tables.dataset(found, now()))


@app.command()
def get(
    ctx: typer.Context,
    dataset: Ref,
    *,
    target: Annotated[Path | None, typer.Option("--output", "-o", help="Where to; else its own name.")] = None,
) -> None:
    """Bring a dataset's file home."""
    output: Output = ctx.obj
    with connect() as client, output.transfer() as bar:
        found = client.dataset(dataset)
        file = target or Path(found.file_name)
        task = bar.add_task("getting", total=found.size)
        found = client.get_dataset(
            f"{found.name}@{found.version}",
            file,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if output.json:
        output.document({"name": found.name, "version": found.version, "file": str(file), "sha256": found.sha256})
    output.note(f"{plain(found.name)}@{found.version}: {size(found.size)} in {file}")


@app.command()
def edit(
    ctx: typer.Context,
    name: Name,
    *,
    description: Description = None,
    label: Labels = None,
    shared: Shared = None,
) -> None:
    """Describe a dataset, or say who may use it. What is not given stays."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.update_dataset(name, description=description, labels=label, shared=shared)
    if output.json:
        output.document(found)
    output.note(f"dataset {plain(found.name)} is {found.visibility}")


@app.command()
def rm(ctx: typer.Context, dataset: Ref) -> None:
    """Remove a dataset, or one version of it. Refused while a job that has not ended needs it."""
    output: Output = ctx.obj
    with connect() as client:
        client.delete_dataset(dataset)
    if output.json:
        output.document({"dataset": dataset})
    output.note(f"dataset {plain(dataset)} is removed")
