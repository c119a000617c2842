"""What the Docker engine is asked for: one hardened container per attempt, as a value of the Engine API."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

from services.node_agent.core import wiring
from services.node_agent.core.shelf import FILL_ROOT, Given
from shared.fleet import Order

WORKSPACE, OUTPUTS, INPUTS, RUN = "/workspace", "/outputs", "/inputs", "/run/wherry"
#: Where the volumes of inputs that are files are: an engine mounts folders only, and the file's name is the job's.
FILES = "/run/wherry-inputs"
PARAMS = f"{RUN}/params.json"
LOG_FILE_SIZE, LOG_FILES = "32m", "2"
_TMP_BYTES_MIN = 4096  # tmpfs takes 0 for no limit
_CPUS_MIN = 0.01  # Docker refuses less
_OPEN_FILES = 8192  # above the engine's own hard limit no container starts
_USER = "65534:65534"


class Key(NamedTuple):
    """One attempt."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Place:
    """Whose containers they are: two agents on one engine never touch each other's."""

    stack: str
    node: str

    def name(self, key: Key) -> str:
        """Return the name of an attempt's container; its volumes and staging container begin with it."""
        return f"wherry-{self.stack}-{key.job_id}-{key.attempt}"

    def labels(self, key: Key, owner: str) -> dict[str, str]:
        """Return what is written on everything that belongs to an attempt."""
        return self.own_labels() | {
            "wherry.job": key.job_id,
            "wherry.attempt": str(key.attempt),
            "wherry.owner": owner,
        }

    def input_name(self, volume: str) -> str:
        """Return the name of an input's volume on the engine."""
        return f"wherry-{self.stack}-{self.node}-input-{volume}"

    def input_labels(self, volume: str) -> dict[str, str]:
        """Return what is written on an input's volume, and on what fills it."""
        return self.own_labels() | {"wherry.input": volume}

    def own_labels(self) -> dict[str, str]:
        """Return what is written on everything that this agent makes."""
        return {"wherry.stack": self.stack, "wherry.node": self.node}


def key_of(labels: Mapping[str, str]) -> Key | None:
    """Return the attempt that *labels* name, or None if they name none."""
    job, attempt = labels.get("wherry.job"), labels.get("wherry.attempt", "")
    return Key(job, int(attempt)) if job and attempt.isdigit() else None


def network_name(place: Place, key: Key) -> str:
    """Return the name of the network that a replica has for itself, and the agent asks it over."""
    return f"{place.name(key)}-serve"


def replica_network(place: Place, order: Order, *, is_joined: bool) -> dict[str, Any]:
    """Return the body of ``POST /networks/create`` for a replica: nothing leads out of it.

    Args:
        place: names and labels.
        order: the replica.
        is_joined: the agent comes into it, as a container. Else its machine has an address there, over which the agent
            asks the replica, and the replica reaches what the machine offers on all of its addresses.
    """
    key = Key(order.job_id, order.attempt)
    return {
        "Name": network_name(place, key),
        "Driver": "bridge",
        "Internal": True,
        "CheckDuplicate": True,
        "Options": {"com.docker.network.bridge.inhibit_ipv4": "true"} if is_joined else {},
        "Labels": place.labels(key, order.owner_id),
    }


def volumes(place: Place, key: Key, *, with_inputs: bool = True) -> dict[str, str]:
    """Return an attempt's volumes by where they are mounted. Only a job that has inputs has one for them."""
    name = place.name(key)
    found = {WORKSPACE: f"{name}-workspace", OUTPUTS: f"{name}-outputs", RUN: f"{name}-run"}
    return found | ({INPUTS: f"{name}-inputs"} if with_inputs else {})


def has_command(order: Order, image_config: Mapping[str, Any]) -> bool:
    """Return whether there is anything to run: the job's command, or the image's own."""
    return order.spec.command is not None or bool(image_config.get("Cmd") or image_config.get("Entrypoint"))


def job_container(
    place: Place, order: Order, image: str, *, pids_limit: int, inputs: Mapping[str, Given] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the body of ``POST /containers/create`` for the program of *order*.

    Args:
        place: names and labels.
        order: the attempt.
        image: the id of the image, as the engine resolved it.
        pids_limit: processes and threads that the job may have.
        inputs: the volumes of its inputs, by their names.
    """
    spec, key = order.spec, Key(order.job_id, order.attempt)
    argv = spec.argv()
    # As the entry point, a command replaces the image's entry point and its arguments alike.
    run = {} if argv is None else {"Entrypoint": list(argv), "Cmd": []}
    network = network_name(place, key) if order.service is not None else "none"
    return run | {
        "Image": image,
        "Env": [f"{name}={value}" for name, value in environment(order).items()],
        "WorkingDir": WORKSPACE,
        "User": _USER,
        "Labels": place.labels(key, order.owner_id) | {"wherry.role": "job"},
        "NetworkDisabled": network == "none",  # beside NetworkMode none: saves the engine 0.1 s of network set-up
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "HostConfig": _limits(order, pids_limit)
        | _walls(order)
        | _network(network)
        | {"Mounts": [*_mounts(place, order, is_job=True), *_input_mounts(place, inputs)]},
    }


def staging_container(place: Place, order: Order, image: str) -> dict[str, Any]:
    """Return the body for the container that is never started: files are put through it into the volumes.

    The job's own container cannot take them: its root file system is read-only.
    """
    key = Key(order.job_id, order.attempt)
    return {
        "Image": image,
        "Entrypoint": ["/never-started"],
        "Cmd": [],
        "Labels": place.labels(key, order.owner_id) | {"wherry.role": "staging"},
        "NetworkDisabled": True,
        "HostConfig": {"NetworkMode": "none", "Mounts": _mounts(place, order, is_job=False)},
    }


def filling_container(place: Place, volume: str, image: str) -> dict[str, Any]:
    """Return the body for the container, never started, through which an input's volume is filled."""
    mount = {"Type": "volume", "Target": f"/{FILL_ROOT}", "Source": place.input_name(volume)}
    return {
        "Image": image,
        "Entrypoint": ["/never-started"],
        "Cmd": [],
        "Labels": place.input_labels(volume) | {"wherry.role": "staging"},
        "NetworkDisabled": True,
        "HostConfig": {"NetworkMode": "none", "Mounts": [mount | {"VolumeOptions": {"NoCopy": True}}]},
    }


def input_target(name: str, given: Given) -> str:
    """Return where the volume of an input is mounted."""
    return f"{FILES if given.is_file else INPUTS}/{name}"


def _input_mounts(place: Place, inputs: Mapping[str, Given]) -> list[dict[str, Any]]:
    return [
        {
            "Type": "volume",
            "Target": input_target(name, given),
            "Source": place.input_name(given.volume),
            "ReadOnly": True,
            "VolumeOptions": {"NoCopy": True},
        }
        for name, given in inputs.items()
    ]


def environment(order: Order) -> dict[str, str]:
    """Return the variables of the program: where things are, then the user's own on top."""
    ours = {
        "WHERRY_WORKSPACE": WORKSPACE,
        "WHERRY_INPUTS": INPUTS,
        "WHERRY_OUTPUTS": OUTPUTS,
        "WHERRY_PARAMS": PARAMS,
        "WHERRY_JOB_ID": order.job_id,
        "WHERRY_ATTEMPT": str(order.attempt),
        "WHERRY_CPUS": f"{order.spec.resources.cpus:g}",
        "HOME": WORKSPACE,
        "XDG_CACHE_HOME": "/tmp",  # noqa: S108 - the container's own
        "PYTHONUNBUFFERED": "1",  # else Python's lines arrive in blocks of 8 KiB
    }
    # CUDA images ask for every GPU by a variable of their own; the NVIDIA runtime would obey.
    gpus = {} if order.gpus else {"NVIDIA_VISIBLE_DEVICES": "void"}
    peers = wiring.environment(order.wiring) if order.wiring is not None else {}
    return ours | peers | order.spec.env | gpus | (port_variables(order.service.port) if order.service else {})


def port_variables(port: int) -> dict[str, str]:
    """Return the variables that tell a replica where to listen."""
    return {"WHERRY_PORT": str(port), "PORT": str(port)}


def _limits(order: Order, pids_limit: int) -> dict[str, Any]:
    resources = order.spec.resources
    devices = {"Driver": "nvidia", "DeviceIDs": list(order.gpus), "Capabilities": [["gpu"]]}
    return {
        "NanoCpus": int(max(resources.cpus, _CPUS_MIN) * 1e9),
        "Memory": resources.memory,
        "MemorySwap": resources.memory,  # the sum of both: no swap
        "PidsLimit": pids_limit,
        "ShmSize": max(resources.shm, _TMP_BYTES_MIN),
        "OomScoreAdj": 500,
        "Ulimits": [
            {"Name": "nofile", "Soft": _OPEN_FILES, "Hard": _OPEN_FILES},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
        "DeviceRequests": [devices] if order.gpus else [],
        "LogConfig": {"Type": "json-file", "Config": {"max-size": LOG_FILE_SIZE, "max-file": LOG_FILES}},
    }


def _walls(order: Order) -> dict[str, Any]:
    spec = order.spec
    tmp_exec = "exec" if spec.tmp_exec else "noexec"
    return {
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true"],
        "Privileged": False,
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": f"rw,{tmp_exec},nosuid,nodev,mode=1777,size={max(spec.resources.tmp, _TMP_BYTES_MIN)}"}  # noqa: S108
        # Always there: programs may look into it without asking first.
        | ({} if spec.inputs else {INPUTS: f"ro,noexec,nosuid,nodev,mode=555,size={_TMP_BYTES_MIN}"}),
        "IpcMode": "private",
        "Init": True,
        "RestartPolicy": {"Name": "no"},
        "AutoRemove": False,  # what it left is read after its end
    }


def _network(name: str) -> dict[str, Any]:
    # The engine's name server would ask the world for whoever is inside: it gets one that is nobody.
    return {"NetworkMode": name} | ({} if name == "none" else {"Dns": ["127.0.0.1"]})


def _mounts(place: Place, order: Order, *, is_job: bool) -> list[dict[str, Any]]:
    key = Key(order.job_id, order.attempt)
    labels = place.labels(key, order.owner_id)
    return [
        {
            "Type": "volume",
            "Target": target,
            "Source": source,
            "ReadOnly": is_job and target in (RUN, INPUTS),
            # NoCopy: what the image has at these paths stays out of the job's own folders.
            "VolumeOptions": {"NoCopy": True, "Labels": labels},
        }
        for target, source in volumes(place, key, with_inputs=bool(order.spec.inputs)).items()
    ]


def image_names(images: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Give the names under which jobs may ask for *images*: tags (``latest`` also without it) and digests."""
    for image in images:
        for tag in image.get("RepoTags") or ():
            if tag != "<none>:<none>":
                yield tag
                yield tag.removesuffix(":latest")
        yield from (digest for digest in image.get("RepoDigests") or () if not digest.startswith("<none>"))
        yield image["Id"]
