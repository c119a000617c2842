"""``wherry deploy``, ``predict``, ``undeploy`` and ``wherry deployments``: models that are served."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from client.wherry.cli.console import Output, as_json, now
from client.wherry.cli.session import LONG_PATIENCE_S, connect
from client.wherry.cli.spec import SpecOptions, build_spec, read_spec
from client.wherry.cli.words import ago, plain
from client.wherry.serving import Deployment, Predictions

app = typer.Typer(help="See deployments, scale and change them.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Its name, or its id.", show_default=False)]
Model = Annotated[
    Path | None, typer.Argument(metavar="[MODEL]", help="A zip or a folder with the model.", show_default=False)
]
EXIT_FAILED = 1
_LOOK_S = 0.5
#: Replicas that have failed one after the other when `deploy --wait` gives up.
_FAILURES_MAX = 3


def deploy(  # noqa: PLR0913 - each option of the command is one
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called, in URLs too.", show_default=False)],
    path: Model = None,
    *,
    artifact: Annotated[str | None, typer.Option(help="A model that is stored already.")] = None,
    model: Annotated[str | None, typer.Option(help="One of the catalogue, NAME or NAME@VERSION.")] = None,
    image: Annotated[str | None, typer.Option(help="What serves it; else the server's own.")] = None,
    port: Annotated[int | None, typer.Option(help="Where the image listens.")] = None,
    health: Annotated[str | None, typer.Option(help="A path that answers 2xx once it is ready.")] = None,
    replicas: Annotated[int | None, typer.Option(help="How many; 1 if not given.")] = None,
    idle: Annotated[str | None, typer.Option(help="Keep none when nobody has asked for so long, e.g. 10m.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs of each replica.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of each replica, e.g. 4GiB.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each replica.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only nodes with this tag; may be given again.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="A variable, NAME=VALUE; may be given again.")] = None,
    spec: Annotated[Path | None, typer.Option("--spec", help="A JSON file with the rest; options win over it.")] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Until it answers.")] = False,
    key: Annotated[str | None, typer.Option(help="The same key is the same deployment.")] = None,
) -> None:
    """Serve a model: NAME answers requests as long as it is not taken away."""
    output: Output = ctx.obj
    typed = SpecOptions(
        image=image, cpus=cpus, memory=memory, gpus=gpus, tags=tuple(tag or ()), env=tuple(env or ()), model=model
    )
    wish = build_spec(read_spec(spec), typed, None) | {"name": name}
    given = {"artifact": artifact, "port": port, "health": health, "replicas": replicas, "idle": idle}
    wish |= {field: value for field, value in given.items() if value is not None}
    with connect(patience_s=LONG_PATIENCE_S) as client:
        made = client.deploy(wish, path, key=key)
        found = until_running(client, made.deployment_id, output) if wait else made
    if output.json:
        output.document(found)
    else:
        output.out.print(found.deployment_id, markup=False)
        output.note(f"{found.status}; ask it with: wherry predict {plain(found.name)} --image FILE")
    if wait and found.status in ("failed", "starting"):
        raise typer.Exit(EXIT_FAILED)


def predict(
    ctx: typer.Context,
    deployment: Name,
    *,
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="An image; may be given again.")] = None,
    image_url: Annotated[str | None, typer.Option(help="The address of an image.")] = None,
    spec: Annotated[
        Path | None, typer.Option("--spec", help='A JSON file with the request: {"instances": [...]}.')
    ] = None,
    width: Annotated[int | None, typer.Option(help="Of the image, as the model takes it.")] = None,
    height: Annotated[int | None, typer.Option(help="Of the image, as the model takes it.")] = None,
    channels: Annotated[int | None, typer.Option(help="Of the image, as the model takes it.")] = None,
) -> None:
    """Ask a model."""
    output: Output = ctx.obj
    order: dict[str, Any] = read_spec(spec)
    given = {"image_url": image_url, "width": width, "height": height, "channels": channels}
    order |= {field: value for field, value in given.items() if value is not None}
    with connect() as client:
        found = client.predict(deployment, order, images=image or ())
    if output.json:
        output.document(found)
    else:
        output.out.print(answers(found))
        output.note(f"{found.latency_ms:.0f} ms, the model {found.model_ms:.0f} ms")


def undeploy(ctx: typer.Context, deployment: Name) -> None:
    """Take a deployment away, once it has answered what it was asked. Safe to repeat."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.undeploy(deployment)
    if output.json:
        output.document(found)
    output.note(f"{plain(found.name)} was {found.status}; it goes")


@app.command("list")
def listed(
    ctx: typer.Context,
    *,
    name: Annotated[str | None, typer.Option(help="Only of this name.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Those that have ended, too.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
) -> None:
    """List deployments, newest first."""
    output: Output = ctx.obj
    with connect() as client:
        found = list(client.deployments(name=name, ended=everything, limit=limit))
    if output.json:
        output.document({"deployments": [as_json(one) for one in found]})
    elif found:
        output.out.print(table(found))
    else:
        output.note("there are none; `wherry deploy` makes one")


@app.command()
def show(ctx: typer.Context, deployment: Name) -> None:
    """Show a deployment: its replicas, and why one waits or failed."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.deployment(deployment)
    if output.json:
        output.document(found)
    else:
        output.out.print(facts(found))


@app.command()
def scale(
    ctx: typer.Context,
    deployment: Name,
    replicas: Annotated[int, typer.Argument(metavar="REPLICAS", help="How many there are to be.", min=0)],
) -> None:
    """Have more replicas, or fewer."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.update_deployment(deployment, {"replicas": replicas})
    if output.json:
        output.document(found)
    output.note(f"{plain(found.name)} is to have {replicas}")


@app.command()
def update(
    ctx: typer.Context,
    deployment: Name,
    path: Model = None,
    *,
    artifact: Annotated[str | None, typer.Option(help="A model that is stored already.")] = None,
    model: Annotated[str | None, typer.Option(help="One of the catalogue, NAME or NAME@VERSION.")] = None,
    image: Annotated[str | None, typer.Option(help="What serves it.")] = None,
    spec: Annotated[Path | None, typer.Option("--spec", help="A JSON file with the rest; options win over it.")] = None,
) -> None:
    """Serve another model, or otherwise: replicas are exchanged one by one, and no request fails for it."""
    output: Output = ctx.obj
    changes: dict[str, Any] = read_spec(spec)
    given = {"artifact": artifact, "model": model, "image": image}
    changes |= {field: value for field, value in given.items() if value is not None}
    with connect(patience_s=LONG_PATIENCE_S) as client:
        found = client.update_deployment(deployment, changes, path)
    if output.json:
        output.document(found)
    output.note(f"{plain(found.name)} was {found.status}; it changes")


def table(found: list[Deployment]) -> Table:
    """Return one line a deployment."""
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("DEPLOYMENT", "NAME", "STATUS", "REPLICAS", "MODEL", "ASKED", "CREATED"):
        made.add_column(column, header_style="dim", no_wrap=True)
    for one in found:
        made.add_row(
            one.deployment_id, Text(plain(one.name)), one.status, f"{one.running}/{one.replicas}",
            Text(plain(one.model or one.artifact or one.image or "")), ago(one.used_at, now()),
            ago(one.created_at, now()),
        )  # fmt: skip
    return made


def facts(one: Deployment) -> Table:
    """Return all that is worth knowing about a deployment."""
    made = Table.grid(padding=(0, 2))
    waits = "; ".join(reason.message for reason in one.pending)
    for label, value in (
        ("deployment", one.deployment_id),
        ("name", one.name),
        ("status", f"{one.status}: {waits}" if waits else one.status),
        ("error", one.error.message if one.error else ""),
        ("model", one.model or one.artifact or ""),
        ("image", one.image or ""),
        ("revision", str(one.revision)),
        ("replicas", f"{one.running} of {one.replicas}"),
        *(("", f"{member.job_id} {member.state} on {member.node or '?'}") for member in one.members),
        ("remarks", "; ".join(one.remarks)),
        ("failed", f"{failed.message} (wherry logs {failed.job_id})" if (failed := one.last_failure) else ""),
        ("predict", one.predict_url),
        ("inference", one.inference_url),
    ):
        if value:
            made.add_row(Text(label, style="dim"), Text(plain(value)))
    return made


def answers(found: Predictions) -> Table:
    """Return one line a prediction."""
    made = Table.grid(padding=(0, 2))
    for one in found.predictions:
        if isinstance(one, dict) and "class" in one and "probability" in one:
            made.add_row(Text(plain(str(one["class"]))), f"{one['probability']:.3f}")
        else:
            made.add_row(Text(plain(str(one))))
    return made


def until_running(client: Any, deployment_id: str, output: Output) -> Deployment:
    """Return the deployment once it has started, or as it is when several replicas in a row have failed."""
    failures: dict[str, None] = {}
    while True:
        found: Deployment = client.deployment(deployment_id)
        if found.status != "starting":
            return found
        if (failed := found.last_failure) is not None and failed.job_id not in failures:
            failures[failed.job_id] = None
            output.note(f"replica {plain(failed.job_id)} has failed: {plain(failed.message)}")
            if len(failures) >= _FAILURES_MAX:
                output.note(
                    f"it is tried on; once the model is right: wherry deployments update {plain(found.name)} MODEL"
                )
                return found
        time.sleep(_LOOK_S)
