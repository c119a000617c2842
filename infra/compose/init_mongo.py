"""Make the replica set of one and its user; run again, change nothing: ``python -m infra.compose.init_mongo``.

Runs in mongod's own network namespace: without a user there is one door only, the loopback.
"""

import os
import sys
import time
from typing import Any
from urllib.parse import urlsplit

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

_UNAUTHORIZED, _ALREADY_INITIALIZED, _USER_EXISTS = 13, 23, 51003


def main() -> int:
    """Return 0 as soon as the set has a primary and the user gets in, 1 if that takes more than a minute."""
    target = urlsplit(os.environ["WHERRY_MONGO_URL"])
    user, password = target.username or "", target.password or ""
    member = os.environ["WHERRY_MONGO_MEMBER"]
    limit = time.monotonic() + 60
    with _open() as door:
        while time.monotonic() < limit:
            try:
                if _is_primary(door, member) and _gets_in(door, user, password):
                    print(f"replica set rs0 with member {member} is ready", flush=True)
                    return 0
            except PyMongoError as trouble:
                print(trouble, file=sys.stderr, flush=True)
            time.sleep(0.2)
    print("the replica set was not ready in a minute", file=sys.stderr)
    return 1


def _is_primary(door: MongoClient[dict[str, Any]], member: str) -> bool:
    if door.admin.command("hello").get("isWritablePrimary"):
        return True
    config = {"_id": "rs0", "version": 1, "members": [{"_id": 0, "host": member}]}
    try:
        door.admin.command("replSetInitiate", config)
    except OperationFailure as refused:
        if refused.code not in {_UNAUTHORIZED, _ALREADY_INITIALIZED}:  # both: it was initiated before
            raise
    return False


def _gets_in(door: MongoClient[dict[str, Any]], user: str, password: str) -> bool:
    try:
        door.admin.command("createUser", user, pwd=password, roles=["root"])
    except OperationFailure as refused:
        if refused.code not in {_UNAUTHORIZED, _USER_EXISTS}:  # both: the first user was made before
            raise
    with _open(username=user, password=password) as inside:
        inside.admin.command("usersInfo", user)
    return True


def _open(username: str | None = None, password: str | None = None) -> MongoClient[dict[str, Any]]:
    return MongoClient(
        "127.0.0.1",
        27017,
        directConnection=True,
        serverSelectionTimeoutMS=2000,
        username=username,
        password=password,
    )


if __name__ == "__main__":
    sys.exit(main())
