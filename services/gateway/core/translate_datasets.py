"""From datasets as messages to what clients see."""

from services.gateway.core import views_datasets
from shared.requests.datasets import Dataset, DatasetVersion


def dataset(found: Dataset, version: int) -> views_datasets.DatasetDocument:
    """Return a dataset as of *version*, one of those that it came with."""
    shown = next(one for one in found.versions if one.version == version)
    return views_datasets.DatasetDocument(
        name=found.name, version=version, artifact_id=shown.artifact_id, sha256=shown.blob.sha256,
        size=shown.blob.size, description=found.description, labels=list(found.labels), media_type=shown.media_type,
        visibility=found.visibility, owner=found.owner_name, created_at=shown.created_at, updated_at=found.updated_at,
        version_count=found.version_count, versions=[_version(one) for one in found.versions],
    )  # fmt: skip


def _version(one: DatasetVersion) -> views_datasets.DatasetVersionView:
    return views_datasets.DatasetVersionView(
        version=one.version, artifact_id=one.artifact_id, sha256=one.blob.sha256, size=one.blob.size,
        media_type=one.media_type, created_at=one.created_at, file=one.name,
    )  # fmt: skip
