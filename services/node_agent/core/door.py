"""The door of a container with network ``api``, as values of the Engine API. Pure.

A container of ours, the relay, has no network but a loopback; the job's own container shares that. On it the relay
listens, and hands what comes to the agent over its standard input and output: see `relay_program`.
"""

from typing import Any

from services.node_agent.core.container import OUTPUTS, RUN, Key, Place, volumes
from shared.fleet import Order

#: Where the relay listens, inside; nobody else's ports are there.
PORT = 8081
TOKEN = f"{RUN}/token"
#: What is said where something else is at a path of the outputs.
OCCUPIED = "There is a folder where a file would go, or no folder where one has to be."
#: Not the job's user: what a program leaves to its like is not the relay's.
_USER = "65533:65533"
_MEMORY, _PIDS = 96 * 1024 * 1024, 16


def relay_name(place: Place, key: Key) -> str:
    """Return the name of an attempt's relay."""
    return f"{place.name(key)}-relay"


def relay_container(
    place: Place, order: Order, image: str, program: str, *, beside: str | None = None
) -> dict[str, Any]:
    """Return the body of ``POST /containers/create`` for an attempt's relay.

    Args:
        place: names and labels.
        order: the attempt.
        image: one with python3.
        program: its text.
        beside: the job's container, where that runs already (its relay has died); else the job's joins this one.
    """
    key = Key(order.job_id, order.attempt)
    mount = {"Type": "volume", "Target": OUTPUTS, "Source": volumes(place, key)[OUTPUTS]}
    labels = place.labels(key, order.owner_id)
    return {
        "Image": image,
        "Entrypoint": ["python3", "-I", "-S", "-u", "-c", program, str(PORT)],
        "Cmd": [],
        "User": _USER,
        "WorkingDir": "/",
        "Labels": labels | {"wherry.role": "relay"},
        "NetworkDisabled": beside is None,  # beside NetworkMode none: saves the engine 0.1 s of network set-up
        "Healthcheck": {"Test": ["NONE"]},
        "OpenStdin": True,
        "StdinOnce": False,  # another agent may come
        "AttachStdin": True,
        "AttachStdout": True,
        "HostConfig": {
            "NetworkMode": "none" if beside is None else f"container:{beside}",
            # What the agent puts into the outputs goes through here: the engine holds the job's own meanwhile.
            "Mounts": [mount | {"VolumeOptions": {"NoCopy": True, "Labels": labels}}],
            "ReadonlyRootfs": True,
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges:true"],
            "Memory": _MEMORY,
            "MemorySwap": _MEMORY,
            "PidsLimit": _PIDS,
            "NanoCpus": int(1e9),
            "IpcMode": "private",
            "LogConfig": {"Type": "none"},  # what it says are the bytes of transfers
            "RestartPolicy": {"Name": "no"},
        },
    }


def joined(job: dict[str, Any], relay: str) -> dict[str, Any]:
    """Return the body of a job's container, with the network of the container *relay* in the place of none."""
    named = {one.partition("=")[0] for one in job["Env"]}
    ours = {name: value for name, value in environment(f"http://127.0.0.1:{PORT}", TOKEN).items() if name not in named}
    return job | {
        "Env": [*job["Env"], *(f"{name}={value}" for name, value in ours.items())],
        "NetworkDisabled": False,
        "HostConfig": job["HostConfig"] | {"NetworkMode": f"container:{relay}"},
    }


def environment(url: str, token_file: str) -> dict[str, str]:
    """Return the variables by which a program finds its door. No proxy that an image names is asked on the way."""
    return {"WHERRY_API": url, "WHERRY_TOKEN_FILE": token_file, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
