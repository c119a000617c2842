"""``wherry models``: find models and run them; for experts, make, release and measure them."""

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from client.wherry import catalogue, model_project
from client.wherry.catalogue import Model
from client.wherry.cli.console import Output, as_json, now
from client.wherry.cli.follow import follow
from client.wherry.cli.session import LONG_PATIENCE_S, connect
from client.wherry.cli.spec import SpecOptions, build_spec
from client.wherry.cli.words import ago, plain, size
from client.wherry.protocol import LogChoice

app = typer.Typer(help="Find models and run them; make, release and measure them.", no_args_is_help=True)

Ref = Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The model.", show_default=False)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.", show_default=False)]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="With model.json and a Dockerfile.", show_default=False)]
Description = Annotated[str | None, typer.Option("--description", "-d", help="What it does.")]
Answers = Annotated[str | None, typer.Option(help="The request to its experts that this version answers.")]
Expert = Annotated[list[str] | None, typer.Option(help="Who is told of requests; may be given again.")]


@app.command("list")
def listed(
    ctx: typer.Context,
    words: Annotated[list[str] | None, typer.Argument(help="Words in its name or description.")] = None,
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 50,
) -> None:
    """List models, by name."""
    output: Output = ctx.obj
    with connect() as client:
        found = list(client.find_models(search=" ".join(words or ()), limit=limit))
    if output.json:
        output.document({"models": [as_json(one) for one in found]})
    elif found:
        table = _table("MODEL", "VERSIONS", "OWNER", "CHANGED", "DESCRIPTION")
        for one in found:
            line = plain(one.description).partition("\n")[0]
            table.add_row(
                Text(f"{one.name}@{one.version}"), str(one.version_count), Text(plain(one.owner)),
                ago(one.updated_at, now()) if one.updated_at else "",
                Text(line if len(line) <= 70 else f"{line[:69]}…"),
            )  # fmt: skip
        output.out.print(table)
    else:
        output.note("there are none; `wherry models push` and `wherry models sync` bring some")


@app.command()
def show(ctx: typer.Context, model: Ref) -> None:
    """Show a model, its parameters and its versions."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.model(model)
    if output.json:
        output.document(found)
    else:
        output.out.print(_shown(found))


@app.command()
def run(  # noqa: PLR0913 - each option of the command is one
    ctx: typer.Context,
    model: Ref,
    *,
    dataset: Annotated[str | None, typer.Option(help="NAME or NAME@VERSION: its data.")] = None,
    param: Annotated[
        list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE, the value JSON or text.")
    ] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory, e.g. 4GiB.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs.")] = None,
    disk: Annotated[str | None, typer.Option(help="Disk, e.g. 10GiB.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only nodes with this tag; may be given again.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Only nodes of this cluster.")] = None,
    key: Annotated[str | None, typer.Option(help="The same key is the same run.")] = None,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it has ended.")] = False,
    folder: Annotated[Path | None, typer.Option("--output", "-o", help="Follow, and bring its outputs there.")] = None,
) -> None:
    """Run a model with a dataset and parameters; the answer is a job."""
    output: Output = ctx.obj
    typed = SpecOptions(
        cpus=cpus,
        memory=memory,
        gpus=gpus,
        disk=disk,
        cluster=cluster,
        tags=tuple(tag or ()),
        params=tuple(param or ()),
    )
    wish: dict[str, Any] = build_spec({}, typed, None) | catalogue.given(dataset=dataset)
    with connect() as client:
        job = client.run_model(model, wish, key=key)
    if not follow_it and folder is None:
        if output.json:
            output.document(job)
            return
        output.out.print(job.job_id, markup=False)
        output.note(f"watch it with: wherry logs -f {job.job_id}")
        return
    output.note(f"job {job.job_id}")
    with connect(patience_s=LONG_PATIENCE_S) as client:
        ended = follow(client, job.job_id, output, LogChoice())
        if folder is not None:
            client.download(job.job_id, folder)
            output.note(f"its outputs are in {folder}")
    if ended.state != "succeeded":
        raise typer.Exit(1)


@app.command()
def sync(
    ctx: typer.Context,
    registry: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The registry.", show_default=False)],
    *,
    prefix: Annotated[str, typer.Option(help="Only repositories whose names begin so.")] = "",
    tag: Annotated[str, typer.Option(help="Which image of each; else its greatest tag.")] = "latest",
) -> None:
    """Register what a registry has. No image is pulled."""
    output: Output = ctx.obj
    with connect(patience_s=LONG_PATIENCE_S) as client:
        found = client.sync_models({"registry": registry, "prefix": prefix, "tag": tag})
    if output.json:
        output.document(found)
    for name in () if output.json else found.added:
        output.out.print(name, markup=False)
    for one in found.failed:
        output.note(f"{plain(one.repository)}: {plain(one.text)}")
    output.note(f"{found.repositories} repositories: {len(found.added)} new, {found.unchanged} as they were")
    if found.error:
        output.note(plain(found.error))
    if found.error or found.failures:
        raise typer.Exit(1)


@app.command()
def register(
    ctx: typer.Context,
    name: Name,
    image: Annotated[str | None, typer.Argument(metavar="IMAGE", help="In a registry.", show_default=False)] = None,
    *,
    job: Annotated[str | None, typer.Option(help="A training or another job, whose outputs are the model.")] = None,
    artifact: Annotated[str | None, typer.Option(help="A zip that is stored already.")] = None,
    description: Description = None,
    expert: Expert = None,
    answers: Answers = None,
) -> None:
    """Make a model or its next version: of an image, of what a training left, or of a zip."""
    output: Output = ctx.obj
    wish = catalogue.given(
        name=name,
        image=image,
        job_id=job,
        artifact_id=artifact,
        description=description,
        experts=expert,
        answers=answers,
    )
    _released(output, wish)


@app.command()
def init(
    ctx: typer.Context, folder: Folder, *, name: Annotated[str | None, typer.Option(help="Else the folder's.")] = None
) -> None:
    """Write a model's folder to begin with."""
    output: Output = ctx.obj
    files = model_project.init(folder, name or folder.resolve().name.lower())
    if output.json:
        output.document({"files": [str(file) for file in files]})
    made, then = ", ".join(file.name for file in files), f"wherry models build {shlex.quote(str(folder))}"
    output.note(f"{made} in {folder}; build it with: {then}")


@app.command()
def build(
    ctx: typer.Context,
    folder: Folder,
    *,
    image: Annotated[str | None, typer.Option("--tag", "-t", help="The image's name; else NAME:latest.")] = None,
    build_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the Dockerfile.")] = None,
    validate: Annotated[bool, typer.Option(help="Run it once with the sample parameters.")] = True,
    dataset: Annotated[Path | None, typer.Option(help="A folder to try it with.")] = None,
) -> None:
    """Build a model's image with its description in its labels, and try it once as a node would run it."""
    output: Output = ctx.obj
    project = model_project.load(folder)
    name = image or f"{project.name}:latest"
    model_project.build(project, name, build_arg or ())
    left = model_project.check(project, name, dataset) if validate else {}
    if output.json:
        output.document({"image": name, "outputs": left})
    else:
        output.out.print(name, markup=False)
    output.note(f"left {', '.join(left)}" if left else "built")


@app.command()
def push(
    ctx: typer.Context,
    folder: Folder,
    reference: Annotated[str, typer.Argument(metavar="REGISTRY/NAME[:TAG]", help="Where to.", show_default=False)],
    *,
    image: Annotated[
        str | None, typer.Option("--tag", "-t", help="The image that was built; else NAME:latest.")
    ] = None,
    expert: Expert = None,
    answers: Answers = None,
) -> None:
    """Push a model's image to a registry and release it: wherry reads its description from there."""
    output: Output = ctx.obj
    project = model_project.load(folder)
    model_project.push(project, image or f"{project.name}:latest", reference)
    _released(output, catalogue.given(name=project.name, image=reference, experts=expert, answers=answers))


@app.command()
def edit(
    ctx: typer.Context,
    name: Name,
    *,
    description: Description = None,
    expert: Expert = None,
    metric: Annotated[str | None, typer.Option(help="What it is measured by.")] = None,
    lower: Annotated[bool, typer.Option("--lower", help="Less of it is better.")] = False,
    limit: Annotated[float | None, typer.Option(help="Beyond this it is worse than it should be.")] = None,
    drop: Annotated[float | None, typer.Option(help="So far off the best before, it is worse.")] = None,
) -> None:
    """Describe a model, name its experts, or say how good it should be. What is not given stays."""
    output: Output = ctx.obj
    if metric is None and (lower or limit is not None or drop is not None):
        raise typer.BadParameter("say what it is measured by", param_hint="--metric")
    quality = catalogue.given(metric=metric, better="lower" if lower else "higher", limit=limit, drop=drop)
    changes = catalogue.given(description=description, experts=expert, quality=quality if metric else None)
    with connect() as client:
        found = client.update_model(name, changes)
    if output.json:
        output.document(found)
    output.note(f"model {plain(found.name)} is changed")


@app.command()
def rm(ctx: typer.Context, model: Ref) -> None:
    """Remove a model with all that is about it, or one version."""
    output: Output = ctx.obj
    with connect() as client:
        client.delete_model(model)
    if output.json:
        output.document({"model": model})
    output.note(f"model {plain(model)} is removed")


@app.command()
def evaluate(
    ctx: typer.Context,
    model: Ref,
    metric: Annotated[
        list[str], typer.Argument(metavar="METRIC=VALUE…", help="What was measured.", show_default=False)
    ],
    *,
    dataset: Annotated[str | None, typer.Option(help="On which data: NAME or NAME@VERSION.")] = None,
    job: Annotated[str | None, typer.Option(help="The job that measured it.")] = None,
    note: Annotated[str, typer.Option(help="For people.")] = "",
) -> None:
    """Keep what a version was measured to be worth; says whether the model has become worse (exit code 1)."""
    output: Output = ctx.obj
    name, version = _named(model)
    wish = catalogue.given(
        version=version,
        metrics=_metrics(metric),
        dataset=dataset,
        job_id=job,
        note=note,
    )
    with connect() as client:
        kept = client.evaluate_model(name, wish)
    if output.json:
        output.document(kept)
    output.note(f"{kept.model}@{kept.version}: {kept.worse or 'as good as it should be'}")
    if kept.worse:
        raise typer.Exit(1)


@app.command()
def evaluations(
    ctx: typer.Context, name: Name, *, limit: Annotated[int, typer.Option("--limit", "-n", min=1)] = 50
) -> None:
    """Show what a model was measured to be worth over time, the newest first."""
    output: Output = ctx.obj
    with connect() as client:
        page = client.model_evaluations(name, limit=limit)
    if output.json:
        output.document(page)
        return
    table = _table("WHEN", "VERSION", "METRICS", "DATASET", "BY", "WORSE")
    for one in page.evaluations:
        metrics = ", ".join(f"{metric}={value:g}" for metric, value in one.metrics.items())
        when = ago(one.at, now()) if one.at else ""
        table.add_row(
            when,
            str(one.version),
            Text(plain(metrics)),
            one.dataset or "",
            Text(plain(one.by)),
            Text(plain(one.worse or "")),
        )
    output.out.print(table)


@app.command()
def ask(
    ctx: typer.Context,
    model: Ref,
    message: Annotated[str, typer.Argument(help="What is wrong, and what you wish.", show_default=False)],
    *,
    dataset: Annotated[str | None, typer.Option(help="The data to make it better with: NAME or NAME@VERSION.")] = None,
) -> None:
    """Ask a model's experts to make it better with new data. They are told by email."""
    output: Output = ctx.obj
    name, version = _named(model)
    wish = catalogue.given(version=version, message=message, dataset=dataset)
    with connect() as client:
        asked = client.ask_experts(name, wish)
    if output.json:
        output.document(asked)
    else:
        output.out.print(asked.id, markup=False)
    output.note(f"told: {plain(', '.join(asked.told)) or 'nobody has an address'}")


@app.command()
def requests(
    ctx: typer.Context,
    name: Name,
    *,
    state: Annotated[str | None, typer.Option(help="open, answered or declined.")] = None,
) -> None:
    """Show the requests to a model's experts, the newest first."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.fine_tune_requests(name, state=state)
    if output.json:
        output.document({"requests": [as_json(one) for one in found]})
        return
    table = _table("REQUEST", "STATE", "VERSION", "DATA", "BY", "WHEN", "MESSAGE", "ANSWER")
    for one in found:
        data = one.dataset or one.artifact_id or ""
        when = ago(one.at, now()) if one.at else ""
        words = plain(one.message).partition("\n")[0][:60]
        table.add_row(
            one.id, one.state, str(one.version), data, Text(plain(one.by)), when, Text(words), Text(plain(one.answer))
        )
    output.out.print(table)


@app.command()
def decline(
    ctx: typer.Context,
    name: Name,
    request: Annotated[str, typer.Argument(metavar="REQUEST", show_default=False)],
    why: Annotated[str, typer.Argument(metavar="WHY", show_default=False)],
) -> None:
    """Say no to a request, and why."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.decline_request(name, request, why)
    if output.json:
        output.document(found)
    output.note(f"request {found.id} is {found.state}")


def _released(output: Output, wish: dict[str, Any]) -> None:
    with connect(patience_s=LONG_PATIENCE_S) as client:
        made = client.release_model(wish)
    if output.json:
        output.document(made)
    else:
        output.out.print(f"{made.name}@{made.version}", markup=False)
    if made.is_new is False:
        output.note("this version was there already")
    for remark in next((one.remarks for one in made.versions if one.version == made.version), []):
        output.note(plain(remark))


def _named(model: str) -> tuple[str, int | None]:
    """Return a model's name, and its version where one is given.

    Raises:
        typer.BadParameter: that is no number.

    """
    name, at, version = model.partition("@")
    if at and not (version.isascii() and version.isdecimal()):
        raise typer.BadParameter(f"{version!r} is not the number of a version", param_hint="NAME[@VERSION]")
    return name, int(version) if at else None


def _metrics(given: list[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name] = float(value)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is not NAME=NUMBER", param_hint="METRIC=VALUE") from None
    return found


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _shown(model: Model) -> Group:
    facts = Table.grid(padding=(0, 2))
    for label, value in (
        ("model", f"{model.name}@{model.version}"),
        ("description", model.description),
        ("owner", model.owner),
        ("experts", ", ".join(model.experts)),
        ("image", model.image or ""),
        ("artifact", model.artifact_id or ""),
        ("quality", _quality(model)),
    ):
        if value:
            facts.add_row(label, Text(plain(value)))
    params = _table("PARAMETER", "WHAT", "FOR")
    for name, kind, words in catalogue.described(model.params):
        params.add_row(Text(plain(name)), Text(plain(kind)), Text(plain(words)))
    versions = _table("VERSION", "SIZE", "CREATED", "BY", "FROM")
    for one in model.versions:
        made = f"job {one.lineage.job_id}" if one.lineage else one.reference or one.artifact_id or ""
        when = ago(one.created_at, now()) if one.created_at else ""
        versions.add_row(str(one.version), size(one.size), when, Text(plain(one.created_by)), Text(plain(made)))
    return Group(facts, Text(), params, Text(), versions) if params.row_count else Group(facts, Text(), versions)


def _quality(model: Model) -> str:
    wanted = model.quality
    if wanted is None:
        return ""
    parts = [f"{wanted.metric}, {wanted.better} is better"]
    parts += [f"limit {wanted.limit:g}"] if wanted.limit is not None else []
    parts += [f"may drop by {wanted.drop:g}"] if wanted.drop is not None else []
    return ", ".join(parts)
