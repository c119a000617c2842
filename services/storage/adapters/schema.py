"""Collections and indexes, made at every start. Changes of what is stored are numbered migrations."""

import asyncio

from pymongo import ASCENDING, DESCENDING, IndexModel

from services.storage.adapters.mongo import Mongo
from services.storage.core.fleet import SAMPLES_KEPT_DAYS

#: Counts up with every change of stored documents that needs a migration.
SCHEMA_VERSION = 1

_UP, _DOWN = ASCENDING, DESCENDING
#: Chunks hold what users' own tools have compressed; trying again costs more than it gives.
_UNCOMPRESSED = {"wiredTiger": {"configString": "block_compressor=none"}}

INDEXES: dict[str, list[IndexModel]] = {
    "jobs": [
        IndexModel([("created_us", _DOWN), ("_id", _DOWN)]),
        IndexModel([("owner_id", _UP), ("created_us", _DOWN), ("_id", _DOWN)]),
        IndexModel([("state", _UP), ("created_us", _DOWN), ("_id", _DOWN)]),
        IndexModel([("owner_id", _UP), ("state", _UP), ("created_us", _DOWN), ("_id", _DOWN)]),
        IndexModel([("labels", _UP), ("created_us", _DOWN), ("_id", _DOWN)]),
        IndexModel([("name", _UP), ("created_us", _DOWN), ("_id", _DOWN)]),
        IndexModel(
            [("owner_id", _UP), ("view", _UP), ("created_us", _DOWN), ("_id", _DOWN)],
            partialFilterExpression={"view": {"$gt": ""}},
        ),
        IndexModel([("datasets", _UP)], sparse=True),
        IndexModel([("gang_id", _UP)], partialFilterExpression={"gang_id": {"$gt": ""}}),
    ],
    "items": [
        IndexModel([("job_id", _UP), ("index", _UP)]),
        IndexModel([("job_id", _UP), ("state", _UP), ("index", _UP)]),
        IndexModel([("item_id", _UP)]),
        IndexModel([("artifact", _UP)], partialFilterExpression={"artifact": {"$gt": ""}}),
    ],
    "events": [IndexModel([("job_id", _UP), ("_id", _UP)]), IndexModel([("owner_id", _UP), ("_id", _UP)])],
    "logs": [IndexModel([("key", _UP), ("first", _UP), ("last", _UP)]), IndexModel([("key", _UP), ("last", _DOWN)])],
    "metrics": [IndexModel([("key", _UP), ("at_us", _UP)])],
    "nodes": [IndexModel([("name", _UP), ("_id", _UP)])],
    "node_samples": [
        IndexModel([("node_id", _UP), ("at", _UP)]),
        IndexModel([("at", _UP)], expireAfterSeconds=SAMPLES_KEPT_DAYS * 86400),
    ],
    "dead_letters": [
        IndexModel([("at_us", _DOWN), ("_id", _DOWN)]),
        IndexModel([("reader", _UP), ("at_us", _DOWN), ("_id", _DOWN)]),
    ],
    "deliveries": [IndexModel([("job_id", _UP)])],
    "users": [IndexModel([("name_key", _UP)], unique=True)],
    "sessions": [IndexModel([("user_id", _UP)]), IndexModel([("expires_at", _UP)], expireAfterSeconds=0)],
    "secrets": [IndexModel([("owner_id", _UP)])],
    "artifacts": [IndexModel([("owner_id", _UP), ("created_us", _DOWN)]), IndexModel([("sha256", _UP)])],
    "blob_refs": [IndexModel([("scope", _UP), ("sha256", _UP)], unique=True), IndexModel([("sha256", _UP)])],
    "datasets": [IndexModel([("versions.artifact_id", _UP)])],
    "models": [IndexModel([("owner_id", _UP)])],
    "model_versions": [IndexModel([("model", _UP), ("version", _DOWN)]), IndexModel([("artifact_id", _UP)])],
    "evaluations": [IndexModel([("model", _UP), ("at_us", _DOWN), ("_id", _DOWN)])],
    "fine_tunes": [
        IndexModel([("at_us", _DOWN), ("_id", _DOWN)]),
        IndexModel([("model", _UP), ("at_us", _DOWN), ("_id", _DOWN)]),
    ],
    "model_syncs": [IndexModel([("started_us", _UP)])],
    "fetches": [IndexModel([("job_id", _UP)]), IndexModel([("artifact_id", _UP)], sparse=True)],
    "snapshots": [IndexModel([("asked_us", _UP)]), IndexModel([("job_id", _UP)])],
    "retention_runs": [IndexModel([("started_us", _UP)])],
    "uploads": [IndexModel([("active_at", _UP)]), IndexModel([("file_id", _UP)])],
    "resumables": [
        IndexModel([("active_at", _UP)]),
        IndexModel([("file_id", _UP)]),
        IndexModel([("owner_id", _UP), ("state", _UP)]),
    ],
    # The names and keys of GridFS: any client finds what it expects. The last one keeps each digest once.
    "fs.files": [
        IndexModel([("filename", _UP), ("uploadDate", _UP)]),
        IndexModel([("metadata.sha256", _UP)], unique=True),
    ],
    "fs.chunks": [IndexModel([("files_id", _UP), ("n", _UP)], unique=True)],
}


class NewerSchemaError(Exception):
    """The database was written by a newer storage. Start that one."""


async def prepare(mongo: Mongo) -> None:
    """Bring the database up to this version. Safe to repeat, and for several at once.

    Raises:
        NewerSchemaError: a newer version has written it.
        PyMongoError: MongoDB does not answer.
    """
    found = await mongo["meta"].find_one({"_id": "schema"})
    version = found["version"] if found else SCHEMA_VERSION
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(f"the database has schema {version}, this storage knows {SCHEMA_VERSION}")
    await mongo.create("fs.chunks", storageEngine=_UNCOMPRESSED)
    await asyncio.gather(*(mongo[name].create_indexes(indexes) for name, indexes in INDEXES.items()))
    await mongo["meta"].update_one({"_id": "schema"}, {"$max": {"version": SCHEMA_VERSION}}, upsert=True)
