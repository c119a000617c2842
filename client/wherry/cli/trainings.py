"""``wherry train`` and ``wherry trainings``: models from code and data."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from client.wherry.cli.console import Output, as_json, now
from client.wherry.cli.follow import follow
from client.wherry.cli.session import LONG_PATIENCE_S, connect
from client.wherry.cli.spec import SpecOptions, build_spec, read_spec
from client.wherry.cli.words import ago, between, plain, plural, size
from client.wherry.protocol import LogChoice
from client.wherry.trainings import Training

app = typer.Typer(help="See trainings, fetch their models, end them.", no_args_is_help=True)
TrainingId = Annotated[str, typer.Argument(metavar="TRAINING", help="The training's id.", show_default=False)]
EXIT_FAILED, EXIT_INTERRUPTED = 1, 130
_ROLES = {"ps": "parameter_servers", "workers": "workers", "chief": "chief"}


def train(  # noqa: PLR0913 - each option of the command is one
    ctx: typer.Context,
    *,
    algorithm: Annotated[
        Path | None, typer.Option(help="A Python file with train(data, params, outputs).", show_default=False)
    ] = None,
    preprocessing: Annotated[
        Path | None, typer.Option(help="One with prepare(dataset, params), which gives the data.")
    ] = None,
    helpers: Annotated[Path | None, typer.Option(help="One that the others import.")] = None,
    dataset: Annotated[
        str | None, typer.Option(help="A data set, NAME or NAME@VERSION; an artifact's id; or a URL.")
    ] = None,
    param: Annotated[list[str] | None, typer.Option(help="A parameter, NAME=VALUE, the value JSON or text.")] = None,
    distributed: Annotated[
        str | None,
        typer.Option(
            help="Over several machines: ps=1,workers=2; chief=1: one more, for whom they work.", show_default=False
        ),
    ] = None,
    spec: Annotated[Path | None, typer.Option("--spec", help="A JSON file with the rest; options win over it.")] = None,
    name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    image: Annotated[str | None, typer.Option(help="The image to run in; else the server's own.")] = None,
    runtime: Annotated[str | None, typer.Option(help="docker, or process: on the bare machine.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs of each worker.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of each worker, e.g. 4GiB.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each worker.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only nodes with this tag; may be given again.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A word to find its job by; may be given again.")] = None,
    notify_email: Annotated[list[str] | None, typer.Option(help="Whom to tell of the end.")] = None,
    timeout: Annotated[str | None, typer.Option(help="The longest it may run, e.g. 2h.")] = None,
    attempts: Annotated[int | None, typer.Option(help="How often it is tried if it fails; 1 if not given.")] = None,
    key: Annotated[str | None, typer.Option(help="The same key is the same training.")] = None,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it has ended.")] = False,
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", help="Follow it, and bring the model to this folder.")
    ] = None,
) -> None:
    """Train a model: a file prepares the data, a file trains, and a third has what both need."""
    output: Output = ctx.obj
    typed = SpecOptions(
        name=name, image=image, runtime=runtime, cpus=cpus, memory=memory, gpus=gpus, timeout=timeout,
        max_attempts=attempts, tags=tuple(tag or ()), params=tuple(param or ()), labels=tuple(label or ()),
        notify_email=tuple(notify_email or ()),
    )  # fmt: skip
    wish: dict[str, Any] = build_spec(read_spec(spec), typed, None)
    files = {"algorithm": algorithm, "preprocessing": preprocessing, "helpers": helpers, "dataset": dataset}
    wish |= {field: given for field, given in files.items() if given is not None}
    if distributed is not None:
        wish["distributed"] = {**wish.get("distributed", {}), **roles(distributed)}
    if not wish.get("algorithm"):
        raise typer.BadParameter("give the file that trains", param_hint="--algorithm")
    with connect() as client:
        made = client.train(wish, key=key)
    if not follow_it and folder is None:
        if output.json:
            output.document(made)
            return
        output.out.print(made.training_id, markup=False)
        output.note(f"{made.status}; watch it with: wherry logs -f {made.training_id}")
        return
    if output.json:
        output.document({"event": "submitted", **as_json(made)})
    output.note(f"training {made.training_id}")
    _follow(output, made.training_id)
    if folder is not None:
        _fetch(output, made.training_id, folder)


def roles(text: str) -> dict[str, int | bool]:
    """Return the members that ``ps=1,workers=2`` asks for; ``chief=1`` is one more, that trains by them.

    Raises:
        typer.BadParameter: it is not of that form.

    """
    found: dict[str, int | bool] = {}
    for part in text.split(","):
        role, _, count = part.strip().partition("=")
        if role not in _ROLES or not count.isdecimal() or (role == "chief" and count not in ("0", "1")):
            raise typer.BadParameter(f"{text!r} is not ps=1,workers=2", param_hint="--distributed")
        found[_ROLES[role]] = count == "1" if role == "chief" else int(count)
    return found


@app.command("list")
def listed(
    ctx: typer.Context,
    *,
    status: Annotated[
        list[str] | None,
        typer.Option(help="initializing, training, completed, failed or terminated; may be given again."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Only of this name.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
) -> None:
    """List trainings, newest first."""
    output: Output = ctx.obj
    with connect() as client:
        found = list(client.trainings(statuses=status or (), name=name, limit=limit))
    if output.json:
        output.document({"trainings": [as_json(one) for one in found]})
    elif found:
        output.out.print(table(found))
    else:
        output.note("there are none; `wherry train` begins one")


@app.command()
def show(ctx: typer.Context, training: TrainingId) -> None:
    """Show a training: how far it is, what it measured, and why it failed."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.training(training)
    if output.json:
        output.document(found)
    else:
        output.out.print(facts(found))


@app.command()
def get(
    ctx: typer.Context,
    training: TrainingId,
    *,
    folder: Annotated[Path | None, typer.Option("--output", "-o", help="Where to; else a folder named so.")] = None,
) -> None:
    """Download what a training left: the model and what it measured."""
    _fetch(ctx.obj, training, folder or Path(training))


@app.command()
def stop(ctx: typer.Context, training: TrainingId) -> None:
    """End a training and free its machines. Safe to repeat."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.terminate_training(training)
    if output.json:
        output.document(found)
    output.note(f"training {plain(training)} was {found.status}; it ends")


def table(found: list[Training]) -> Table:
    """Return one line a training."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("TRAINING", "NAME", "STATUS", "PROGRESS", "DATASET", "CREATED", "TOOK"):
        made.add_column(column, header_style="dim", no_wrap=True)
    for one in found:
        done = f"{one.progress.fraction:.0%}" if one.progress and one.status == "training" else ""
        made.add_row(
            one.training_id, Text(plain(one.name)), one.status, done, Text(plain(one.dataset or "")),
            ago(one.created_at, now()), between(one.created_at, one.ended_at),
        )  # fmt: skip
    return made


def facts(one: Training) -> Table:
    """Return all that is worth knowing about a training."""
    made = Table.grid(padding=(0, 2))
    waits = "; ".join(reason.message for reason in one.pending)
    done = f"{one.progress.fraction:.0%} {one.progress.message}" if one.progress else ""
    for label, value in (
        ("training", one.training_id),
        ("name", one.name),
        ("status", f"{one.status}: {waits}" if waits else one.status),
        ("progress", done),
        ("error", one.error.message if one.error else ""),
        ("image", one.image or ""),
        ("dataset", one.dataset or ""),
        ("params", " ".join(f"{name}={value}" for name, value in one.params.items())),
        ("distributed", " ".join(f"{name}={value}" for name, value in (one.distributed or {}).items() if value)),
        ("members", " ".join(f"{member.role}-{member.index}:{member.state}" for member in one.members)),
        ("metrics", " ".join(f"{name}={value:g}" for name, value in one.metrics.items())),
        ("download", one.download_url or ""),
    ):
        if value:
            made.add_row(Text(label, style="dim"), Text(plain(value)))
    return made


def _follow(output: Output, training_id: str) -> None:
    """Watch a training to its end.

    Raises:
        typer.Exit: it was not completed, or the user stopped watching.

    """
    try:
        with connect(patience_s=LONG_PATIENCE_S) as client:
            job = follow(client, training_id, output, LogChoice())
    except KeyboardInterrupt:
        output.note(f"training {training_id} goes on\n  stop it:  wherry trainings stop {training_id}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if job.state != "succeeded":
        raise typer.Exit(EXIT_FAILED)


def _fetch(output: Output, training_id: str, folder: Path) -> None:
    with connect(patience_s=LONG_PATIENCE_S) as client, output.transfer() as bar:
        task = bar.add_task("getting", total=None)
        files = client.download_training(
            training_id, folder, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    if output.json:
        names = [str(file) for file in files]
        output.document({"training_id": training_id, "folder": str(folder), "files": names})
        return
    total = sum(file.stat().st_size for file in files)
    output.note(f"{plural(len(files), 'file')}, {size(total)} in {folder}")
