"""The agent's program: ``wherry-agent`` or ``python -m services.node_agent``."""

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from pydantic import ValidationError

from services.node_agent.adapters import host_psutil
from services.node_agent.adapters.docker_endpoint import endpoints
from services.node_agent.adapters.docker_runtime import DockerRuntime
from services.node_agent.adapters.gpu_nvml import NvmlGpus
from services.node_agent.adapters.journal import Journal
from services.node_agent.adapters.processes import INHERITED, ProcessRuntime
from services.node_agent.adapters.storage import Storage
from services.node_agent.core.container import Place
from services.node_agent.core.shelf import disk_for_inputs
from services.node_agent.ports import Runtime
from services.node_agent.settings import AgentSettings, controller_address
from services.node_agent.shell.agent import Agent, offered
from shared import observe
from shared.blobs import BlobClient
from shared.bus import EXIT_RESTART_ME, Bus
from shared.channels import Service
from shared.errors import Forbidden, WherryError
from shared.heap import keep_heap
from shared.settings import complaints

_CONNECT_S = 5.0
_log = observe.logger("main")

app = typer.Typer(add_completion=False, help="Offers this machine to a wherry controller, and runs what it is given.")

Controller = Annotated[str | None, typer.Option(help="The controller's NATS address, e.g. nats://host:4222.")]
WorkerName = Annotated[str | None, typer.Option(help="What the node is called; the host's name otherwise.")]
Tags = Annotated[str | None, typer.Option(help="Tags, separated by commas.")]
Cluster = Annotated[str | None, typer.Option(help="The cluster that the node belongs to.")]
ImageStoreEndpoint = Annotated[str | None, typer.Option(help="Where images to filter come from.")]
ImageStoreToken = Annotated[str | None, typer.Option(help="The token for it.")]
CapacityOption = Annotated[
    str | None, typer.Option(help="The share that is offered: cpus=2,memory=4GiB,disk=50GiB,gpus=1.")
]
DataDir = Annotated[Path | None, typer.Option(help="Where the journal and files of attempts are.")]
Address = Annotated[str | None, typer.Option(help="Where other nodes reach this one, for gangs that span several.")]
HostNetwork = Annotated[
    bool | None,
    typer.Option("--host-network/--no-host-network", help="Members of such gangs may have this machine's own network."),
]
Config = Annotated[Path | None, typer.Option(help="A file with the controller's address.")]


@app.callback(invoke_without_command=True)
def start(  # noqa: PLR0913, PLR0917 - the options
    context: typer.Context,
    controller: Controller = None,
    worker_name: WorkerName = None,
    tags: Tags = None,
    cluster: Cluster = None,
    image_store_endpoint: ImageStoreEndpoint = None,
    image_store_token: ImageStoreToken = None,
    capacity: CapacityOption = None,
    data_dir: DataDir = None,
    address: Address = None,
    host_network: HostNetwork = None,
    config: Config = None,
) -> None:
    """Run the agent, unless a command is given. Options win over WHERRY_… variables."""
    given: dict[str, Any] = {
        "nats_url": controller,
        "worker_name": worker_name,
        "tags": tags,
        "cluster": cluster,
        "image_store_endpoint": image_store_endpoint,
        "image_store_token": image_store_token,
        "capacity": capacity,
        "data_dir": data_dir,
        "address": address,
        "host_network": host_network,
        "controller_file": config,
    }
    try:
        context.obj = _settings({name: value for name, value in given.items() if value is not None})
    except (ValueError, OSError) as error:
        for line in complaints(error) if isinstance(error, ValidationError) else [str(error)]:
            typer.echo(f"wherry-agent: {line}", err=True)
        raise typer.Exit(2) from error
    if context.invoked_subcommand is None:
        run(context)


@app.command()
def run(context: typer.Context) -> None:
    """Run the agent until it is told to stop; containers run on."""
    keep_heap()
    settings: AgentSettings = context.obj
    observe.configure(settings, "node_agent")
    observe.serve_metrics(settings.node_agent_metrics_port)
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until there is an agent to leave
    with _alone(settings.folder):
        raise typer.Exit(asyncio.run(serve(settings)))


@app.command()
def leave(context: typer.Context) -> None:
    """Take this machine out for good: the agent that runs here gets nothing new, and ends with its last job."""
    settings: AgentSettings = context.obj
    path = settings.folder / "lock"
    try:
        with path.open() as lock:
            if not _is_held(lock):
                typer.echo(f"wherry-agent: no agent works in {settings.folder}", err=True)
                raise typer.Exit(1)
            os.kill(int(lock.read()), signal.SIGUSR1)
            typer.echo(
                f"The agent of {settings.node} gets nothing new, and ends when its last job has; waiting for it."
            )
            fcntl.flock(lock, fcntl.LOCK_EX)
    except (OSError, ValueError) as error:
        typer.echo(f"wherry-agent: the agent in {settings.folder} cannot be told: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo("It has ended.")


@app.command()
def doctor(context: typer.Context) -> None:
    """Say what is found on this machine, and what is not."""
    settings: AgentSettings = context.obj
    observe.configure(settings.model_copy(update={"log_level": "error"}), "node_agent")  # it says itself what it finds
    raise typer.Exit(asyncio.run(_doctor(settings)))


async def serve(settings: AgentSettings) -> int:
    """Run an agent until SIGTERM or SIGINT, and return the exit code."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    work = asyncio.create_task(_serve(settings))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not work.done():
        work.cancel()
        await asyncio.wait({work})
        return 0
    if (error := work.exception()) is not None:
        _log.error("agent_failed", exc_info=error)
        return EXIT_RESTART_ME
    return work.result()


async def _serve(settings: AgentSettings) -> int:
    node = settings.node
    async with (
        # Not waited for: what runs here is taken up, and ends, also while there is no network.
        Bus.connect(settings, Service.NODE_AGENT, peer=node, wait=False) as bus,
        Bus.connect(settings, Service.NODE_AGENT, peer=node, purpose="blobs", wait=False) as blob_bus,
    ):
        storage = Storage(BlobClient(blob_bus, "node", node), patience_s=settings.upload_patience_s)
        journal = Journal(settings.folder / "journal.sqlite")
        try:
            agent = Agent(settings, bus, storage, journal, runtimes(settings), NvmlGpus())
            _log.info("agent_started", node_id=node, name=settings.name, folder=str(settings.folder))
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, agent.leave)
            running = asyncio.create_task(agent.run())
            closed = [asyncio.create_task(one.closed.wait()) for one in (bus, blob_bus)]
            try:
                await asyncio.wait({running, *closed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in (running, *closed):
                    task.cancel()
                await asyncio.wait({running, *closed})
            return EXIT_RESTART_ME if running.cancelled() else running.result()
        finally:
            journal.close()


def runtimes(settings: AgentSettings) -> list[Runtime]:
    """Return the runtimes that *settings* ask for."""
    made: list[Runtime] = []
    for name in settings.runtime_list:
        match name:
            case "docker":
                made.append(
                    DockerRuntime(
                        Place(settings.stack_id, settings.node),
                        endpoints(os.environ, Path.home(), os.getuid()),
                        pids_limit=settings.pids_limit,
                        relay_image=settings.relay_image,
                        timeout_s=settings.engine_timeout_s,
                        threads=settings.engine_threads,
                        starts=2 * (os.cpu_count() or 1),
                        host_network=settings.host_network,
                    )
                )
            case "process":
                inherited = {key: os.environ[key] for key in INHERITED if key in os.environ}
                made.append(ProcessRuntime(settings.folder / "processes", inherited))
            case _:
                raise ValueError(f"WHERRY_RUNTIMES: {name!r} is unknown; there are docker and process")
    return made


def _settings(given: dict[str, Any]) -> AgentSettings:
    settings = AgentSettings(**given)
    if settings.controller_file is not None and "nats_url" not in given:
        address = controller_address(settings.controller_file.expanduser().read_text("utf-8"))
        settings = settings.model_copy(update={"nats_url": address})
    _ = settings.share, runtimes_known(settings)
    return settings


def runtimes_known(settings: AgentSettings) -> None:
    """Refuse a runtime that does not exist, before anything is started.

    Raises:
        ValueError: naming it.
    """
    for name in settings.runtime_list:
        if name not in ("docker", "process"):
            raise ValueError(f"WHERRY_RUNTIMES: {name!r} is unknown; there are docker and process")


async def _doctor(settings: AgentSettings) -> int:
    settings.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    host, gpus, problems, facts = host_psutil.machine(settings.folder), NvmlGpus(), 0, []
    typer.echo(
        f"node       {settings.node} ({settings.name}), cluster {settings.cluster}, tags {settings.tags or 'none'}"
    )
    typer.echo(f"data       {settings.folder}")
    for runtime in runtimes(settings):
        try:
            found = await runtime.describe()
            facts.append(found)
            typer.echo(f"{runtime.name:10} {found.text}")
        except WherryError as error:
            problems += 1
            typer.echo(f"{runtime.name:10} {error.message}")
        await runtime.close()
    cards = gpus.read()
    typer.echo(f"gpus       {', '.join(f'{gpu.name} {gpu.uuid}' for gpu in cards) or 'none'} {gpus.problem}".rstrip())
    gpus.close()
    capacity = offered(host, facts, settings.share, cards, disk_for_inputs(host.disk, settings.inputs_disk))
    gib = 1024**3
    typer.echo(
        f"capacity   cpus {capacity.cpus:g}, memory {capacity.memory / gib:.1f} GiB, disk {capacity.disk / gib:.1f} GiB"
    )
    problems += not await _controller_answers(settings)
    return 1 if problems else 0


async def _controller_answers(settings: AgentSettings) -> bool:
    try:
        async with asyncio.timeout(_CONNECT_S):
            async with Bus.connect(settings, Service.NODE_AGENT, peer=settings.node, purpose="doctor"):
                typer.echo(f"controller {settings.nats_url} answers")
                return True
    except (WherryError, TimeoutError) as error:
        typer.echo(f"controller {settings.nats_url} {trouble_with_controller(settings, error)}")
        return False


def trouble_with_controller(settings: AgentSettings, error: Exception) -> str:
    """Return what to say of a controller that could not be asked, and what to do about it."""
    if isinstance(error, Forbidden):
        wanted = f"WHERRY_NATS_USER=node-{settings.node} and, from the operator, WHERRY_NATS_PASSWORD"
        return f"refuses {settings.nats_user or 'whoever does not say who it is'}: set {wanted}"
    why = f": {error}" if str(error) else ""
    return f"does not answer{why}. --controller HOST:PORT is the address of its NATS server, not of its gateway"


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Hold the data folder: two agents on one journal would run everything twice."""
    with (folder / "lock").open("a+") as lock:
        if _is_held(lock):
            typer.echo(f"wherry-agent: another agent works in {folder}", err=True)
            raise typer.Exit(1)
        lock.truncate(0)
        lock.write(str(os.getpid()))  # for `leave`
        lock.flush()
        yield


def _is_held(lock: TextIO) -> bool:
    """Return whether another process holds *lock*; else this one does from now on."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def main() -> None:
    """Run the command line."""
    app(prog_name="wherry-agent")


if __name__ == "__main__":
    sys.exit(main())
