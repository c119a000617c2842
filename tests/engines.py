"""Several engines on one machine, each as on a machine of its own: a Docker daemon in a network namespace.

    with Engines(2) as engines:
        first, second = engines
        first.load("wherry/busybox")
        first.popen([...])             # a program on that "machine"
        second.cut()                   # its cable is pulled out

The namespaces hang on a bridge of this machine by a pair of interfaces each; this machine is `engines.gateway` to them,
and nothing leads further. Needs root. A daemon is started with `nsenter`: `ip netns exec` mounts /sys anew, which hides
the control groups, and the daemon dies.
"""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

_START_S = 60.0
_STOP_S = 30.0
_MEMORY = "4g"  # at most, of all together


def why_not() -> str:
    """Return why there can be no such engines here; empty where there can."""
    if os.geteuid():
        return "several engines on one machine need root"
    if missing := [name for name in ("ip", "nsenter", "dockerd", "docker") if shutil.which(name) is None]:
        return f"several engines on one machine need {', '.join(missing)}"
    probe = f"wherry-probe-{os.getpid()}"
    tries = (("ip", "netns", "add", probe), ("ip", "-n", probe, "link", "add", "type", "bridge"))
    has_failed = any(_quiet(*words).returncode for words in tries)
    _quiet("ip", "netns", "del", probe)
    if has_failed:
        return "several engines on one machine need network namespaces and bridges"
    if _quiet("docker", "info").returncode:  # the machine's own cannot either, or there is none
        return "no engine answers here"
    return ""


class Engine:
    """One daemon, its namespace and its address there."""

    def __init__(self, home: Path, tag: str, number: int, network: str) -> None:
        self.name = f"e{number}"
        self.home = home / self.name
        self.space = f"wherry-{tag}-{number}"
        self.address, self.gateway = f"{network}.{number + 1}", f"{network}.1"
        self._outside, self._inside = f"wh{tag}{number}", f"wi{tag}{number}"
        self._daemon: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        """Where the daemon listens, as DOCKER_HOST has it."""
        return f"unix://{self.home}/docker.sock"

    @property
    def env(self) -> dict[str, str]:
        """The environment of programs that use this engine and no other."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
        return kept | {"DOCKER_HOST": self.host}

    # --- the machine -----------------------------------------------------------------------------------------------

    def plug(self, bridge: str) -> None:
        """Make the namespace, and connect it."""
        _run("ip", "netns", "add", self.space)
        _run("ip", "link", "add", self._outside, "type", "veth", "peer", "name", self._inside, "netns", self.space)
        _run("ip", "link", "set", self._outside, "master", bridge, "up")
        for words in (
            ("addr", "add", f"{self.address}/24", "dev", self._inside),
            ("link", "set", "lo", "up"),
            ("link", "set", self._inside, "up"),
            ("route", "add", "default", "via", self.gateway),
        ):
            _run("ip", "-n", self.space, *words)

    def cut(self) -> None:
        """Pull the cable: nothing gets in or out."""
        _run("ip", "link", "set", self._outside, "down")

    def mend(self) -> None:
        """Put the cable back."""
        _run("ip", "link", "set", self._outside, "up")

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Be cut off inside the block."""
        self.cut()
        try:
            yield
        finally:
            self.mend()

    def argv(self, *words: str) -> list[str]:
        """Return *words* as a command that runs on this machine."""
        return ["nsenter", f"--net=/var/run/netns/{self.space}", *words]

    def popen(self, words: Sequence[str], env: Mapping[str, str] | None = None, **how: Any) -> subprocess.Popen[bytes]:
        """Start a program on this machine."""
        return subprocess.Popen(self.argv(*words), env={**self.env, **(env or {})}, **how)

    # --- the engine ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon; `wait` says when it answers."""
        self.home.mkdir(parents=True)
        (self.home / "daemon.json").write_text("{}")  # not the one of the machine's own engine
        with (self.home / "dockerd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                self.argv(
                    "dockerd", "--host", self.host, "--data-root", str(self.home / "data"),
                    "--exec-root", str(self.home / "run"), "--pidfile", str(self.home / "docker.pid"),
                    "--config-file", str(self.home / "daemon.json"), "--bridge", "none", "--ip-forward=false",
                    "--ip-masq=false", "--log-level", "warn",
                ),
                stdout=log, stderr=log, env=self.env,
            )  # fmt: skip

    def wait(self) -> None:
        """Return once the daemon answers.

        Raises:
            AssertionError: it ended, or does not in time.
        """
        give_up_at = time.monotonic() + _START_S
        while self._docker("version", check=False).returncode:
            assert self._daemon is not None
            if self._daemon.poll() is not None or time.monotonic() > give_up_at:
                raise AssertionError(f"no daemon for {self.name}:\n{(self.home / 'dockerd.log').read_text()[-3000:]}")
            time.sleep(0.1)

    def load(self, *images: str) -> None:
        """Bring images of this machine's own engine here, without a registry."""
        with subprocess.Popen(["docker", "save", *images], stdout=subprocess.PIPE) as save:
            subprocess.run(["docker", "load", "-q"], stdin=save.stdout, env=self.env, check=True, capture_output=True)
        assert save.returncode == 0, f"{images} could not be saved"

    def docker(self, *words: str) -> str:
        """Return what the docker command says on this engine."""
        done = self._docker(*words, check=False)
        assert done.returncode == 0, f"docker {' '.join(words)} on {self.name}: {done.stderr}"
        return done.stdout.strip()

    def info(self) -> dict[str, Any]:
        """Return what the engine says of itself."""
        return json.loads(self.docker("info", "--format", "{{json .}}"))

    def stop(self) -> None:
        """Remove all that it has, end it, and take away the machine."""
        with contextlib.suppress(subprocess.SubprocessError):
            for container in self.docker("ps", "-aq").split():
                self._docker("rm", "-fv", container, check=False)
        if self._daemon is not None:
            self._daemon.terminate()
            try:
                self._daemon.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._daemon.kill()
                self._daemon.wait()
        for pid in _pids_in(self.space):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
        _quiet("ip", "link", "del", self._outside)
        _quiet("ip", "netns", "del", self.space)
        for mount in _mounts_below(self.home):
            _quiet("umount", "-l", mount)

    def _docker(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["docker", *words], env=self.env, capture_output=True, text=True, check=check, timeout=_START_S
        )


class Engines:
    """*count* engines that reach each other and this machine, and nothing else; all is gone after the block.

    What they hold is in memory unless it is to be *on_disk*: images of many small files take long to be removed there.
    """

    def __init__(self, count: int, *, on_disk: bool = False) -> None:
        tag = secrets.token_hex(3)
        self._bridge = f"whb{tag}"
        self._through = ("-i", self._bridge, "-o", self._bridge, "-j", "ACCEPT")
        self._home = Path(tempfile.mkdtemp(prefix="wherry-engines-"))
        self._on_disk = on_disk
        network = _free_network()
        self.gateway = f"{network}.1"
        self._engines = [Engine(self._home, tag, number, network) for number in range(1, count + 1)]

    def __enter__(self) -> Self:
        try:
            if not self._on_disk:
                _run("mount", "-t", "tmpfs", "-o", f"size={_MEMORY}", "wherry-engines", str(self._home))
            _run("ip", "link", "add", self._bridge, "type", "bridge")
            _run("ip", "addr", "add", f"{self.gateway}/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
            if shutil.which("iptables"):  # the machine's own engine lets nothing through that it does not know
                _run("iptables", "-I", "FORWARD", *self._through)
            for one in self._engines:
                one.plug(self._bridge)
                one.start()
            for one in self._engines:
                one.wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for one in self._engines:
            one.stop()
        _quiet("ip", "link", "del", self._bridge)
        if shutil.which("iptables"):
            _quiet("iptables", "-D", "FORWARD", *self._through)
        if os.path.ismount(self._home):
            _quiet("umount", "-l", str(self._home))
        shutil.rmtree(self._home, ignore_errors=True)
        assert not self._home.exists(), f"something of {self._home} is left: {_mounts_below(self._home)}"

    def __iter__(self) -> Iterator[Engine]:
        return iter(self._engines)

    def __getitem__(self, index: int) -> Engine:
        return self._engines[index]


def _free_network() -> str:
    """Return the first three numbers of a network that this machine has no way to yet."""
    taken = _run("ip", "-4", "route", "show", "table", "all")
    networks = (f"10.{200 + secrets.randbelow(50)}.{secrets.randbelow(256)}" for _ in range(1000))
    return next(one for one in networks if one not in taken)


def _pids_in(space: str) -> list[int]:
    return [int(pid) for pid in _quiet("ip", "netns", "pids", space).stdout.split()]


def _mounts_below(folder: Path) -> list[str]:
    """Return what is mounted below *folder*, the innermost first."""
    found = (line.split()[1] for line in Path("/proc/mounts").read_text().splitlines())
    return sorted((one for one in found if one.startswith(f"{folder}/")), reverse=True)


def _run(*words: str) -> str:
    done = _quiet(*words)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout


def _quiet(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)
