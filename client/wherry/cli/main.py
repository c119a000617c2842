"""The commands.

Exit codes: 0 done; 1 the job did not succeed; 2 wrong usage; 3 the server cannot be reached or does not know you;
4 the server refused; 5 something else; 130 interrupted.
"""

import os
import re
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from client.wherry import __version__, config, models
from client.wherry.cli import admin, artifacts, catalogue, datasets, mapping, nodes, series, serving, tables, trainings
from client.wherry.cli.console import Output, as_json, now
from client.wherry.cli.follow import follow
from client.wherry.cli.session import LONG_PATIENCE_S, PATIENCE_S, connect
from client.wherry.cli.spec import SpecOptions, build_spec, read_spec
from client.wherry.cli.words import cancelled_note, plain, plural, size
from client.wherry.client import Client
from client.wherry.errors import WherryError
from client.wherry.outputs import select
from client.wherry.protocol import LogChoice
from client.wherry.source import ProgressCallback

EXIT_JOB, EXIT_UNREACHABLE, EXIT_REFUSED, EXIT_OTHER, EXIT_INTERRUPTED = 1, 3, 4, 5, 130

_HINTS = {
    "unreachable": "Is it up? `make up` starts a local one; `wherry login URL` or WHERRY_URL chooses another.",
    "unauthenticated": "Log in again: `wherry login`, or `wherry login --local` for the stack in this folder.",
    "not_logged_in": "Run `wherry login URL`, or `wherry login --local` for the stack in this folder.",
    "forbidden": "This needs another role; ask an administrator.",
    "throttled": "Wait a little, then try again.",
    "bad_answer": "Check the address: `wherry login URL` chooses another.",
}
#: The server was never there, or does not know us.
_NO_ENTRY = frozenset({"unreachable", "unauthenticated", "not_logged_in", "bad_answer", "bad_url", "no_local_stack"})


class Commands(TyperGroup):
    """Takes --json anywhere, and turns errors into one sentence and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Move --json to the front, where the option is."""
        own = args[: args.index("--")] if "--" in args else args
        if "--json" in own:
            rest = args[len(own) :]
            args = ["--json", *(arg for arg in own if arg != "--json"), *rest]
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            typer.Exit: it did not work out; the reason has been said.

        """
        try:
            return super().invoke(ctx)
        except WherryError as error:
            raise _told(ctx, error) from error
        except BrokenPipeError:
            raise  # whoever reads has enough
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise _told(ctx, WherryError("disk", f"{where}{error.strerror or error}")) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from interrupt


def _told(ctx: Any, error: WherryError) -> typer.Exit:
    """Say what went wrong; return the end of the command."""
    output = ctx.obj if isinstance(ctx.obj, Output) else Output()
    output.problem(error, _HINTS.get(error.code, ""))
    return typer.Exit(_exit_code(error))


def _exit_code(error: WherryError) -> int:
    if error.code in _NO_ENTRY or error.status == 401:
        return EXIT_UNREACHABLE
    return EXIT_REFUSED if error.status is not None else EXIT_OTHER


app = typer.Typer(
    cls=Commands,
    help="Hand jobs to wherry, watch them, and bring their results home.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(datasets.app, name="datasets")
app.add_typer(nodes.app, name="nodes")
app.command("clusters")(nodes.clusters)
app.add_typer(artifacts.app, name="artifacts")
app.add_typer(admin.users, name="users")
app.add_typer(admin.letters, name="dead-letters")
app.command("retention")(admin.retention)
app.command("train")(trainings.train)
app.add_typer(trainings.app, name="trainings")
app.command("deploy")(serving.deploy)
app.command("undeploy")(serving.undeploy)
app.command("predict")(serving.predict)
app.add_typer(serving.app, name="deployments")
app.add_typer(catalogue.app, name="models")
app.command("map")(mapping.map_files)
app.command("items")(mapping.items)
app.command("filter")(mapping.filter_images)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]


def _say_version(*, wanted: bool) -> None:
    if wanted:
        typer.echo(f"wherry {__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """Hand jobs to wherry, watch them, and bring their results home."""
    ctx.obj = Output(json=as_json)


@app.command()
def login(
    ctx: typer.Context,
    url: Annotated[str | None, typer.Argument(help="The server, e.g. https://wherry.example.org.")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Your name there.")] = None,
    *,
    local: Annotated[bool, typer.Option("--local", help="The stack that `make up` started here.")] = False,
) -> None:
    """Log in and keep the session. The password is asked for, or taken from WHERRY_PASSWORD."""
    output: Output = ctx.obj
    if local:
        stack = config.local_stack(os.environ, Path.cwd())
        url, user, password = url or stack.url, user or stack.user, stack.password
    else:
        url = url or config.load(os.environ).url
        user = user or _ask("User")
        password = os.environ.get("WHERRY_PASSWORD") or _ask("Password", hidden=True)
    with Client(url, patience_s=PATIENCE_S) as client:
        session = client.login(user, password)
        path = config.save(os.environ, config.Credentials(url=client.url, user=session.user, token=session.token))
    if output.json:
        output.document({"url": client.url, "user": session.user})
    output.note(f"logged in to {client.url} as {session.user}; the session is kept in {path}")


def _ask(what: str, *, hidden: bool = False) -> str:
    if not sys.stdin.isatty():
        option = "WHERRY_PASSWORD" if hidden else "--user"
        raise typer.BadParameter(f"there is no terminal to ask on: give {option}")
    return str(typer.prompt(what, hide_input=hidden, err=True))


@app.command()
def logout(ctx: typer.Context) -> None:
    """End the session, here and on the server."""
    output: Output = ctx.obj
    with connect() as client:
        client.logout()
    config.forget(os.environ)
    if output.json:
        output.document({"url": client.url})
    output.note(f"logged out of {client.url}")


@app.command()
def whoami(ctx: typer.Context) -> None:
    """Say who you are there."""
    output: Output = ctx.obj
    with connect() as client:
        identity = client.whoami()
    if output.json:
        output.document(identity)
        return
    address = f", {identity.email}" if identity.email else ""
    output.out.print(f"{identity.user} ({identity.role}{address}) on {client.url}", markup=False)


@app.command("plan", short_help="Say where a job would go, or why it would wait; nothing is handed in.")
@app.command("run", short_help="The same as submit.")
@app.command("submit")
def submit(  # noqa: PLR0913 - each option of the command is one
    ctx: typer.Context,
    path: Annotated[
        Path | None, typer.Argument(help="A folder or a zip: the job's working directory.", show_default=False)
    ] = None,
    *,
    spec: Annotated[
        Path | None, typer.Option("--spec", help="A JSON file with a job spec; options win over it.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="The image to run in.")] = None,
    model: Annotated[
        str | None, typer.Option(help="A model of the catalogue instead, NAME or NAME@VERSION: its image runs.")
    ] = None,
    command: Annotated[str | None, typer.Option(help="What to run, by sh -c; else the image's own command.")] = None,
    name: Annotated[str | None, typer.Option(help="A name for people; else the folder's.")] = None,
    cpus: Annotated[float | None, typer.Option(help="CPUs; fractions are fine.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory, e.g. 512MiB.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs.")] = None,
    gpu_memory: Annotated[str | None, typer.Option(help="Free memory on each GPU, e.g. 16GiB.")] = None,
    disk: Annotated[str | None, typer.Option(help="What it may write, e.g. 20GiB.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only nodes with this tag; may be given again.")] = None,
    cluster: Annotated[str | None, typer.Option(help="Only nodes of this cluster.")] = None,
    node: Annotated[str | None, typer.Option(help="Only this node: its id or name.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="An environment variable, NAME=VALUE; again for more.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="A parameter, NAME=VALUE, the value JSON or text.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A word to find the job by; may be given again.")] = None,
    notify_email: Annotated[list[str] | None, typer.Option(help="Whom to tell of the end.")] = None,
    notify_webhook: Annotated[list[str] | None, typer.Option(help="A URL to tell of the end.")] = None,
    runtime: Annotated[
        str | None, typer.Option(help="docker, or process: on the bare machine, without isolation.")
    ] = None,
    timeout: Annotated[str | None, typer.Option(help="The longest it may run, e.g. 2h.")] = None,
    priority: Annotated[int | None, typer.Option(help="0 to 100; 50 if not given.")] = None,
    attempts: Annotated[int | None, typer.Option(help="How often it is tried if it fails; 1 if not given.")] = None,
    need: Annotated[
        list[str] | None,
        typer.Option(help="A job that has to end first, JOB[:any|always]; with success if nothing is said."),
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input", help="NAME=job:JOB/PATH, job:JOB (all), artifact:ID, dataset:NAME or https://HOST/PATH."
        ),
    ] = None,
    on_disconnect: Annotated[
        str | None, typer.Option(help="keep or stop: what a node that is cut off does with it.")
    ] = None,
    replace_after: Annotated[
        str | None, typer.Option(help="How long a silent node is waited for before another takes over, e.g. 10m.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="none, or api: the program fetches and sends its own data by $WHERRY_API.")
    ] = None,
    exclusive: Annotated[bool, typer.Option("--exclusive", help="Never two attempts at a time.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say where it would go; nothing is handed in.")] = False,
    key: Annotated[str | None, typer.Option(help="The same key is the same job, however often it is sent.")] = None,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it has ended.")] = False,
) -> None:
    """Hand in a job: a folder or zip with your program, and the command that starts it."""
    output: Output = ctx.obj
    typed = SpecOptions(
        name, image, command, runtime, cpus, memory, gpus, gpu_memory, timeout, priority, attempts,
        tuple(tag or ()), tuple(env or ()), tuple(param or ()), tuple(label or ()),
        tuple(notify_email or ()), tuple(notify_webhook or ()),
        tuple(need or ()), tuple(input_ or ()), on_disconnect, replace_after, exclusive or None, network,
        model, disk, cluster, node,
    )  # fmt: skip
    whole = build_spec(read_spec(spec), typed, path.resolve().stem if path else None)
    if plan or ctx.info_name == "plan":  # `wherry plan` takes what `wherry submit` takes
        if follow_it:
            raise typer.BadParameter("nothing is handed in, so there is nothing to follow: leave --follow out")
        _explained(output, lambda client: client.plan(whole), planned=True)
        return
    with connect() as client, output.transfer() as bar:
        submitted = client.submit(whole, path, key=key, progress=_reporter(bar, "sending") if path else None)
    if not follow_it:
        _submitted(output, submitted)
        return
    if output.json:
        output.document({"event": "submitted", **as_json(submitted)})
    output.note(f"job {submitted.job_id}")
    _follow_to_end(output, submitted.job_id)


def _explained(output: Output, ask: Callable[[Client], models.Explanation], *, planned: bool = False) -> None:
    with connect() as client:
        found = ask(client)
    if output.json:
        output.document(found)
    else:
        output.out.print(tables.explanation(found, planned=planned))


def _reporter(bar: Any, what: str) -> ProgressCallback:
    task = bar.add_task(what, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def _submitted(output: Output, submitted: models.Submitted) -> None:
    if output.json:
        output.document(submitted)
        return
    output.out.print(submitted.job_id, markup=False)
    output.note(f"{submitted.state}; watch it with: wherry logs -f {submitted.job_id}")


def _follow_to_end(output: Output, job_id: str, choice: LogChoice | None = None) -> None:
    """Watch a job and exit as it did.

    Raises:
        typer.Exit: it did not succeed, or the user stopped watching.

    """
    try:
        with connect(patience_s=LONG_PATIENCE_S) as client:
            job = follow(client, job_id, output, choice or LogChoice())
    except KeyboardInterrupt:
        output.note(f"job {job_id} goes on\n  watch it: wherry logs -f {job_id}\n  stop it:  wherry cancel {job_id}")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if job.state != "succeeded":
        raise typer.Exit(EXIT_JOB)


@app.command()
def jobs(
    ctx: typer.Context,
    *,
    state: Annotated[list[str] | None, typer.Option(help="Only in this state; may be given again.")] = None,
    name: Annotated[str | None, typer.Option(help="Only of this name.")] = None,
    label: Annotated[str | None, typer.Option(help="Only with this label.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only of this user (administrators).")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many.")] = 20,
) -> None:
    """List jobs, newest first."""
    output: Output = ctx.obj
    with connect() as client:
        found = list(client.jobs(states=state or (), name=name, label=label, owner=owner, limit=limit))
    if output.json:
        output.document({"jobs": [as_json(job) for job in found]})
    elif found:
        output.out.print(tables.jobs(found, now()))
    else:
        output.note("no jobs; hand one in with `wherry submit`")


@app.command()
def show(ctx: typer.Context, job: JobId) -> None:
    """Show a job: where it is, why it waits or failed, step by step what became of it, and its attempts."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.job(job)
    if output.json:
        output.document(found)
    else:
        output.out.print(tables.job(found, now()))


@app.command()
def explain(ctx: typer.Context, job: JobId) -> None:
    """Say why a job waits and what would let it start, why it went where it went, or how it ended."""
    _explained(ctx.obj, lambda client: client.explain(job))


@app.command()
def logs(
    ctx: typer.Context,
    job: JobId,
    *,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    stream: Annotated[str | None, typer.Option(help="Only stdout or stderr.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, max=5000, help="Only the last so many lines.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Nothing before: a line's number, a time (2026-01-31T12:00), or 10m for ago.")
    ] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt; else of the current one.")] = None,
) -> None:
    """Print what a job has printed; of a gang, a map job or a service what all members have, with their names."""
    output: Output = ctx.obj
    choice = LogChoice(stream, tail, _point(since), attempt)
    if follow_it:
        _follow_to_end(output, job, choice)
        return
    with connect() as client:
        for line in client.logs(job, stream=stream, tail=tail, since=choice.since, attempt=attempt):
            if output.json:
                output.document({"text": line})
            else:
                output.line(line)


def _point(text: str | None) -> datetime | int | None:
    """Return where a log is to begin.

    Raises:
        typer.BadParameter: *text* says nothing of that kind.

    """
    if text is None or text.isdecimal():
        return None if text is None else max(1, int(text))
    if ago := re.fullmatch(r"(\d+)([smhd])", text):
        return now() - timedelta(seconds=int(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[ago[2]])
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        raise typer.BadParameter(f"--since {text!r} is no line's number, no time and no 10m") from None


@app.command()
def metrics(
    ctx: typer.Context,
    job: JobId,
    *,
    name: Annotated[list[str] | None, typer.Option(help="Only this one; may be given again.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt; else of the current one.")] = None,
    points: Annotated[int, typer.Option(min=2, max=5000, help="Of each, at most.")] = 1000,
) -> None:
    """Show what a job measured, and what it used of its machine."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.series(job, names=name or (), attempt=attempt, points=points)
    if output.json:
        output.document(found)
    elif found.series:
        output.out.print(series.table(found))
    else:
        output.note("nothing was measured yet; a job prints `::metric loss=0.3 step=7`")


@app.command()
def get(
    ctx: typer.Context,
    job: JobId,
    path: Annotated[str | None, typer.Argument(help="One file or folder of it; else all.", show_default=False)] = None,
    *,
    folder: Annotated[Path | None, typer.Option("--output", "-o", help="Where to; else a folder named JOB.")] = None,
    live: Annotated[bool, typer.Option("--live", help="What it has left so far, while it runs.")] = False,
) -> None:
    """Download what a job left, bit for bit. A download that broke goes on where it was."""
    output: Output = ctx.obj
    target = folder or Path(job)
    with connect() as client, output.transfer() as bar:
        files = client.download(job, target, path, live=live, progress=_reporter(bar, "getting"))
    if output.json:
        output.document({"job_id": job, "folder": str(target), "files": [str(file) for file in files]})
        return
    total = sum(file.stat().st_size for file in files)
    output.note(f"{plural(len(files), 'file')}, {size(total)} in {target}")


@app.command()
def outputs(
    ctx: typer.Context,
    job: JobId,
    path: Annotated[str | None, typer.Argument(help="One file or folder of it; else all.", show_default=False)] = None,
    *,
    live: Annotated[bool, typer.Option("--live", help="What it has left so far, while it runs.")] = False,
) -> None:
    """List what a job left: sizes, digests and paths. `wherry get` downloads it."""
    output: Output = ctx.obj
    with connect() as client:
        if live:
            page = client.live_outputs(job, path)
            found, skipped = list(page.entries), page.skipped
        else:
            found, skipped = select(client.outputs(job), path), ()
        is_early = not live and not found and not client.job(job).is_terminal
    if output.json:
        output.document({"job_id": job, "partial": live, "entries": [as_json(one) for one in found]})
        return
    for one in found:
        digest = (one.sha256 or "")[:12] if one.kind == "file" else "folder"
        output.out.print(plain(f"{size(one.size):>10}  {digest:12}  {one.path}"))
    for remark in skipped:
        output.note(plain(remark))
    if live:
        output.note("this is what it has left so far; the job goes on")
    elif is_early:
        output.note("the job goes on: what it leaves is kept when it ends; --live lists what it has left so far")


@app.command()
def cancel(ctx: typer.Context, job: JobId) -> None:
    """Stop a job. Safe to repeat."""
    output: Output = ctx.obj
    with connect() as client:
        answer = client.cancel(job)
    if output.json:
        output.document(answer)
    output.note(cancelled_note(job, answer.state))


@app.command()
def rerun(
    ctx: typer.Context,
    job: JobId,
    *,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Watch it until it has ended.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Of a map job: all items.")] = False,
) -> None:
    """Hand in the same job again, as a new one; of a map job that has ended, the items without a result."""
    output: Output = ctx.obj
    with connect() as client:
        submitted = client.rerun(job, everything=everything)
    _submitted(output, submitted)
    if follow_it:
        _follow_to_end(output, submitted.job_id)


@app.command()
def status(ctx: typer.Context) -> None:
    """Show the system at a glance."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.status()
    if output.json:
        output.document(found)
    else:
        output.out.print(tables.status(found))


@app.command()
def notifications(ctx: typer.Context, job: JobId) -> None:
    """Show who was told of a job's end, and how that went."""
    output: Output = ctx.obj
    with connect() as client:
        found = client.notifications(job)
    if output.json:
        output.document({"notifications": [as_json(item) for item in found]})
        return
    for item in found:
        output.out.print(plain(f"{item.state:9} {item.kind} {item.target} (tries: {item.tries}) {item.detail}"))
