"""Which server the `wherry` command talks to, and as whom: the environment, else what `wherry login` kept."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from client.wherry.errors import WherryError
from client.wherry.transport import DEFAULT_URL, base_url


class Credentials(BaseModel):
    """A server and a token for it."""

    url: str = DEFAULT_URL
    user: str | None = None
    token: str | None = None


class LocalStack(BaseModel):
    """What a stack on this machine wrote down about itself."""

    url: str
    user: str
    password: str


def config_file(environment: Mapping[str, str]) -> Path:
    """Return where the login is kept."""
    home = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME") or Path.home()) / ".config"
    return Path(home) / "wherry" / "config.json"


def load(environment: Mapping[str, str]) -> Credentials:
    """Return the server and token to use. A kept token is never sent to another server than it is for.

    Raises:
        WherryError: the file is damaged (code ``bad_config``).

    """
    kept = _read(config_file(environment))
    url = base_url(environment.get("WHERRY_URL") or kept.url)
    token = environment.get("WHERRY_TOKEN") or (kept.token if url == kept.url else None)
    return Credentials(url=url, user=kept.user, token=token)


def _read(path: Path) -> Credentials:
    try:
        return Credentials.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return Credentials()
    except (OSError, ValidationError) as error:
        raise WherryError("bad_config", f"{path} cannot be used: remove it and run `wherry login` again") from error


def save(environment: Mapping[str, str], credentials: Credentials) -> Path:
    """Keep a login, readable by this user alone, and return where."""
    path = config_file(environment)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(credentials.model_dump(exclude_none=True), file, indent=2)
    draft.replace(path)
    return path


def forget(environment: Mapping[str, str]) -> None:
    """Drop the kept token; the server's address stays."""
    kept = _read(config_file(environment))
    save(environment, Credentials(url=kept.url, user=kept.user))


def local_stack(environment: Mapping[str, str], start: Path) -> LocalStack:
    """Return the stack of *start* or of the folders above it.

    Raises:
        WherryError: there is none (code ``no_local_stack``).

    """
    home = environment.get("WHERRY_HOME")
    places = [Path(home)] if home else [folder / ".wherry" for folder in (start, *start.parents)]
    for place in places:
        try:
            return LocalStack.model_validate_json((place / "credentials.json").read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValidationError) as error:
            raise WherryError("no_local_stack", f"{place / 'credentials.json'} cannot be read: {error}") from error
    raise WherryError("no_local_stack", "there is no local stack here: start one with `make up`, or set WHERRY_HOME")
