"""Where a file of another job's outputs goes among the inputs. Its path comes from another machine: not believed."""

from shared.errors import WherryError
from shared.spec import JobSpec
from shared.states import EndReason


def asked_path(spec: JobSpec, name: str) -> str | None:
    """Return the path among the other job's outputs that the input *name* is for; None for all of them."""
    found = spec.inputs[name].job
    return found[1] if found else None


def place(path: str, asked: str | None) -> str:
    """Return where the output *path* goes below an input for *asked*; nothing is the input itself.

    Raises:
        WherryError: ``stage_in_failed``: the path would lead out of the input.
    """
    inner = path if asked is None else path.removeprefix(asked).lstrip("/")
    if asked is not None and path != asked and not path.startswith(f"{asked}/"):
        raise _unsafe(path)
    if path.startswith("/") or "\0" in path or any(part in (".", "..") for part in path.split("/")):
        raise _unsafe(path)
    return inner


def _unsafe(path: str) -> WherryError:
    return WherryError(EndReason.STAGE_IN_FAILED, f"The input has an entry that leads out of it: {path!r}")
