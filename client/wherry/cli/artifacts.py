"""``wherry artifacts``: files that are stored once, for jobs or for anybody who knows their ids."""

import os
from pathlib import Path
from typing import Annotated

import typer

from client.wherry import config
from client.wherry.cli import tables
from client.wherry.cli.console import Output, as_json, now
from client.wherry.cli.session import LONG_PATIENCE_S, connect
from client.wherry.cli.words import plain, size

app = typer.Typer(help="Store files, list them, bring them back.", no_args_is_help=True)

ArtifactId = Annotated[str, typer.Argument(metavar="ARTIFACT", help="The artifact's id.", show_default=False)]


@app.command()
def put(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="The file, or a folder: it goes up as a zip.", show_default=False)],
    *,
    name: Annotated[str | None, typer.Option(help="What it is called there; else the file's name.")] = None,
) -> None:
    """Store a file. What broke off goes on where it was, also when the command is run again."""
    output: Output = ctx.obj
    notes = config.config_file(os.environ).parent / "uploads"
    with connect(patience_s=LONG_PATIENCE_S) as client, output.transfer() as bar:
        task = bar.add_task("sending", total=None)
        stored = client.put_artifact(
            file, name=name, progress=lambda done, total: bar.update(task, completed=done, total=total), notes=notes
        )
    if output.json:
        output.document(stored)
        return
    output.out.print(stored.artifact_id, markup=False)
    output.note(f"{size(stored.size)}, sha256 {stored.sha256}")


@app.command()
def get(
    ctx: typer.Context,
    artifact: ArtifactId,
    *,
    target: Annotated[Path | None, typer.Option("--output", "-o", help="Where to; else a file named ARTIFACT.")] = None,
) -> None:
    """Bring an artifact home."""
    output: Output = ctx.obj
    file = target or Path(artifact)
    with connect() as client, output.transfer() as bar:
        task = bar.add_task("getting", total=None)
        sha256 = client.get_artifact(
            artifact, file, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if output.json:
        output.document({"artifact_id": artifact, "file": str(file), "sha256": sha256})
    output.note(f"{size(file.stat().st_size)} in {file}")


@app.command("list")
def listed(
    ctx: typer.Context, *, limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20
) -> None:
    """List what you have stored, newest first."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.artifacts(limit=limit)
    if output.json:
        output.document({"artifacts": [as_json(one) for one in found]})
    elif found:
        output.out.print(tables.artifacts(found, now()))
    else:
        output.note("nothing is stored; `wherry artifacts put FILE` stores a file")


@app.command()
def rm(ctx: typer.Context, artifact: ArtifactId) -> None:
    """Remove an artifact. Refused while something needs it."""
    output: Output = ctx.obj
    with connect() as client:
        client.delete_artifact(artifact)
    if output.json:
        output.document({"artifact_id": artifact})
    output.note(f"artifact {plain(artifact)} is removed")
