"""NATS and MongoDB on this machine: from wheels, from PATH when new enough, or as containers.

Both bind to the loopback, unless NATS is told otherwise. They keep their data, port and log under one folder, and come
back with all three.

    with NatsServer(Path("/tmp/x")) as nats, MongoServer(Path("/tmp/x"), cache_gb=0.25, oplog_mb=64) as mongo:
        print(nats.url, mongo.url)
"""

import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from infra.local.ports import LOOPBACK, kept_port, write_whole

NATS_OLDEST, MONGO_OLDEST = (2, 14), (6, 0)
MONGO_USER = "wherry"
#: For a server to answer. One that has ended is not waited for; one on a busy machine is.
START_S = 120.0
#: Unauthorized: it has users; and AlreadyInitialized.
_INITIATED_BEFORE = frozenset({13, 23})


class ServerFailedError(Exception):
    """A server did not start. The message has the end of its log."""


class Server(ABC):
    """One server process: start, wait until it answers, stop, kill, start again.

    Attributes:
        name: what it is called in ports.json and the log's file name.
        home: the folder of data, port and log.
        environment: of the process, where the user's own does not say otherwise.

    """

    name = "server"
    environment: Mapping[str, str] = {}

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        self.process: subprocess.Popen[bytes] | None = None
        self._port: int | None = None

    @property
    def port(self) -> int:
        """The loopback port, chosen at the first start."""
        if self._port is None:
            self._port = kept_port(self.home / "ports.json", self.name)
        return self._port

    @property
    def log(self) -> Path:
        """Where the server's output goes."""
        return self.home / "logs" / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The process's id, or None when it does not run."""
        return self.process.pid if self.running and self.process else None

    @property
    def running(self) -> bool:
        """Whether the process is there; not whether it answers."""
        return self.process is not None and self.process.poll() is None

    @abstractmethod
    def command(self) -> list[str]:
        """Return what to execute."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether the server is ready for its clients."""

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process and return at once."""
        command = self.command()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = _popen(command, out, {**self.environment, **os.environ})
        return self.process

    def wait_ready(self, timeout_s: float = START_S) -> None:
        """Return when the server answers.

        Raises:
            ServerFailedError: it ended, or did not answer in time.

        """
        limit = time.monotonic() + timeout_s
        while not self.answers():
            if not self.running:
                code = self.process.returncode if self.process else None
                raise ServerFailedError(f"{self.name} ended with {code}; the end of {self.log}:\n{self.tail()}")
            if time.monotonic() > limit:
                raise ServerFailedError(
                    f"{self.name} did not answer in {timeout_s:g} s; see {self.log}:\n{self.tail()}"
                )
            time.sleep(0.03)

    def start(self, timeout_s: float = START_S) -> Self:
        """Start the process and return when it answers.

        Raises:
            ServerFailedError: it did not.

        """
        self.spawn()
        try:
            self.wait_ready(timeout_s)
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self, timeout_s: float = 15) -> None:
        """End it in order (SIGTERM); after *timeout_s* by force."""
        if self.running and self.process:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        if self.running and self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def tail(self, lines: int = 20) -> str:
        """Return the end of the log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class NatsServer(Server):
    """nats-server with JetStream, every write on disk before it is acknowledged.

    Args:
        home: the folder of data, port and log.
        accounts: configuration text with accounts and users (`shared.permissions`); None lets everybody in.
        sync_always: False is for tests of things other than durability.
        host: the address to listen on; 0.0.0.0 is all that the machine has.

    """

    name = "nats"
    # As in docker-compose.yml. Each message of half a megabyte is a piece of memory of its own, and a server that holds
    # little tidies up after every few of them: rarer tidying takes a fifth off its work for a blob (measured).
    environment = {"GOGC": "400", "GOMEMLIMIT": "700MiB"}

    def __init__(
        self, home: Path, accounts: str | None = None, *, sync_always: bool = True, host: str = LOOPBACK
    ) -> None:
        super().__init__(home)
        self.host = host
        self.accounts = accounts
        self.sync_always = sync_always

    @property
    def url(self) -> str:
        """Where clients on this machine connect, without a user."""
        return f"nats://{self._here}:{self.port}"

    @property
    def _here(self) -> str:
        return LOOPBACK if self.host == "0.0.0.0" else self.host  # noqa: S104 - compared, not bound

    def config(self) -> str:
        """Return the text of the server's configuration."""
        data = self.home / "nats"
        sync = "sync_interval: always" if self.sync_always else ""
        return (
            f"listen: {self.host}:{self.port}\n{SERVER_LIMITS}"
            f'jetstream {{ store_dir: "{data}"\n  {sync} }}\n'
            f"{self.accounts or ''}"
        )

    def command(self) -> list[str]:
        file = self.home / "nats.conf"
        write_whole(file, self.config(), 0o600)
        if program := find_nats():
            return [program, "-c", str(file)]
        data = self.home / "nats"
        data.mkdir(parents=True, exist_ok=True)
        image = os.environ.get("WHERRY_NATS_IMAGE", "nats:2.14")
        mounts = ["-v", f"{file}:{file}:ro", "-v", f"{data}:{data}", "--user", f"{os.getuid()}:{os.getgid()}"]
        mounts += [part for name, value in self.environment.items() for part in ("-e", f"{name}={value}")]
        command = ["-c", str(file), "-a", "0.0.0.0"]  # noqa: S104 - in its container
        return _container("nats", self.port, mounts, image, command, self.host)

    def answers(self) -> bool:
        try:
            with socket.create_connection((self._here, self.port), 1) as client:
                client.settimeout(1)
                return client.recv(5) == b"INFO "
        except OSError:
            return False


#: What every nats-server of ours is set to, in the local stack as in containers.
SERVER_LIMITS = """\
max_payload: 1MB
max_pending: 64MB
ping_interval: "10s"
write_deadline: "5s"
"""


class MongoServer(Server):
    """mongod as a replica set of one, with a password of its own.

    Args:
        home: the folder of data, key, password, port and log.
        cache_gb: WiredTiger's cache; at least 0.25.
        oplog_mb: the oplog of a new data folder; at least 8 here, 990 is mongod's own least.
        auth: False lets in everybody on this machine. Containers never have it.

    """

    name = "mongo"

    def __init__(self, home: Path, *, cache_gb: float = 1.0, oplog_mb: int = 1024, auth: bool = True) -> None:
        super().__init__(home)
        self.cache_gb = cache_gb
        self.oplog_mb = oplog_mb
        self.program = find_mongod()
        self.auth = auth and self.program is not None

    @property
    def url(self) -> str:
        """Where clients connect, with user and password."""
        who = f"{MONGO_USER}:{self._secret('mongo.password', 24)}@" if self.auth else ""
        return f"mongodb://{who}{LOOPBACK}:{self.port}/?directConnection=true"

    def spawn(self) -> subprocess.Popen[bytes]:
        member = self.home / "mongo" / "wherry.port"  # under which port the set in this folder knows itself
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if member.exists() and member.read_text() != str(self.port):
            self._move(member)
        process = super().spawn()
        member.write_text(str(self.port))
        return process

    def command(self) -> list[str]:
        (self.home / "mongo").mkdir(parents=True, exist_ok=True)
        options = [*self._where(), *self._options()]
        if self.auth:
            self._secret("mongo.key", 512)
            options += ["--keyFile", str(self.home / "mongo.key")]
        return self._program(options)

    def _program(self, options: list[str]) -> list[str]:
        if self.program:
            return [self.program, *options]
        image = os.environ.get("WHERRY_MONGO_IMAGE", "mongo:7")
        return _container("mongo", self.port, ["-v", f"{self.home / 'mongo'}:/data/db"], image, ["mongod", *options])

    def _where(self) -> list[str]:
        if self.program:
            return ["--dbpath", str(self.home / "mongo"), "--bind_ip", LOOPBACK, "--nounixsocket"]
        return ["--bind_ip_all"]  # in its container; only the loopback is published

    def _options(self) -> list[str]:
        return [
            "--port", str(self.port),
            "--replSet", "rs0",
            "--oplogSize", str(self.oplog_mb),
            "--wiredTigerCacheSizeGB", str(self.cache_gb),
            # What is stored is mostly compressed already; compressing it again costs more than it saves.
            "--wiredTigerCollectionBlockCompressor", "none",
            "--wiredTigerJournalCompressor", "none",
            "--networkMessageCompressors", "snappy,zstd",
            "--setParameter", "diagnosticDataCollectionEnabled=false",
            # A primary otherwise waits 15 s on SIGTERM for a successor that a set of one does not have.
            "--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100",
        ]  # fmt: skip

    def answers(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), 1):
                pass
            return self._is_primary()
        except (OSError, PyMongoError):
            return False

    def _is_primary(self) -> bool:
        bare = f"mongodb://{LOOPBACK}:{self.port}/?directConnection=true"
        with _mongo(bare) as client:  # hello and, on a new set, replSetInitiate and the first user need no password
            if not client.admin.command("hello").get("isWritablePrimary"):
                self._join_itself(client)
                return False
            if self.auth:
                self._add_user(client)
        return True

    def _join_itself(self, client: MongoClient[dict[str, Any]]) -> None:
        """Initiate a new set. One that was initiated before refuses, and becomes primary by itself."""
        me = {"_id": "rs0", "version": 1, "members": [{"_id": 0, "host": f"{LOOPBACK}:{self.port}"}]}
        try:
            client.admin.command("replSetInitiate", me)
        except OperationFailure as refused:
            if refused.code not in _INITIATED_BEFORE:
                raise

    def _move(self, member: Path) -> None:
        """Write today's port into a set that was made under another one: without it, it would look for itself there.

        The documented way: started without its set, for one write.
        """
        plain = [*self._where(), "--port", str(self.port), "--setParameter", "disableLogicalSessionCacheRefresh=true"]
        with self.log.open("ab") as out:
            process = _popen(self._program(plain), out, os.environ)
        try:
            limit = time.monotonic() + START_S
            while not self._rename():
                if process.poll() is not None or time.monotonic() > limit:
                    raise ServerFailedError(
                        f"mongod could not be moved to another port; see {self.log}:\n{self.tail()}"
                    )
                time.sleep(0.05)
        finally:
            process.terminate()
            process.wait(30)
        member.write_text(str(self.port))

    def _rename(self) -> bool:
        try:
            with _mongo(f"mongodb://{LOOPBACK}:{self.port}/?directConnection=true") as client:
                host = {"members.0.host": f"{LOOPBACK}:{self.port}"}
                client["local"]["system.replset"].update_one({"_id": "rs0"}, {"$set": host})
        except PyMongoError:
            return False
        return True

    def _add_user(self, client: MongoClient[dict[str, Any]]) -> None:
        password = self._secret("mongo.password", 24)
        try:
            client.admin.command("createUser", MONGO_USER, pwd=password, roles=["root"])
        except OperationFailure as refused:
            if refused.code not in {13, 51003}:  # there are users already, so the door without a password is shut
                raise

    def _secret(self, name: str, size: int) -> str:
        file = self.home / name
        if not file.exists():
            write_whole(file, re.sub(r"[^A-Za-z0-9]", "x", secrets.token_urlsafe(size)), 0o600)
        return file.read_text()


def find_nats() -> str | None:
    """Return nats-server: the wheel's, or PATH's when it is new enough."""
    return _find(_wheel_nats(), "nats-server", NATS_OLDEST)


def find_mongod() -> str | None:
    """Return mongod: the wheel's, or PATH's when it is new enough."""
    return _find(_wheel_mongod(), "mongod", MONGO_OLDEST)


def _wheel_nats() -> Path:
    return Path(sysconfig.get_path("scripts")) / "nats-server"


def _wheel_mongod() -> Path | None:
    spec = importlib.util.find_spec("fiftyone")
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders if (path := Path(folder) / "db/bin/mongod").exists()), None)


def _find(wheel: Path | None, name: str, oldest: tuple[int, int]) -> str | None:
    if wheel and _version(str(wheel)) >= oldest:
        return str(wheel)
    on_path = shutil.which(name)
    return on_path if on_path and _version(on_path) >= oldest else None


def _version(program: str) -> tuple[int, int]:
    """Return major and minor of *program*, (0, 0) when it does not run here."""
    try:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
    except OSError:
        return (0, 0)
    match = re.search(r"v(?:ersion )?:? ?v?(\d+)\.(\d+)", told)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _container(
    kind: str, port: int, mounts: list[str], image: str, command: list[str], host: str = LOOPBACK
) -> list[str]:
    """Return a `docker run` that lives and dies as the server itself would."""
    docker = shutil.which("docker")
    if docker is None:
        raise ServerFailedError(
            f"there is no {kind} server: neither its wheel for this platform, nor one on PATH that is new enough, "
            f"nor Docker to run {image}; set WHERRY_{kind.upper()}_URL to one that runs elsewhere"
        )
    name = ["--name", f"wherry-{kind}-{port}"]
    published = ["-p", f"{host}:{port}:{port}"]
    return [docker, "run", "--rm", "--init", *name, *published, *mounts, image, *command]


def _mongo(url: str) -> MongoClient[dict[str, Any]]:
    return MongoClient(url, serverSelectionTimeoutMS=1000, connectTimeoutMS=1000)


def _popen(command: list[str], out: IO[bytes], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment)
