"""From items and workloads to what clients see."""

from collections.abc import Sequence

from services.gateway.core import images, translate
from services.gateway.core import views_mapping as views
from shared.job import Item, Job
from shared.requests.jobs import ItemList


def item(one: Item) -> views.ItemDocument:
    """Return an item."""
    return views.ItemDocument(
        item_id=one.id, number=one.index + 1, name=one.spec.name, state=one.state, tries=one.tries,
        node=one.node or None, worker=one.worker or None, added_at=one.added_at, started_at=one.started_at,
        ended_at=one.ended_at, error=translate.failure(one.error), params=one.spec.params,
        artifact_id=one.spec.artifact, path=one.spec.path, given=one.spec.given,
        files=[views.ItemFileView(path=file.path, size=file.blob.size, sha256=file.blob.sha256) for file in one.files],
    )  # fmt: skip


def items(page: ItemList) -> views.ItemPage:
    """Return a page of items."""
    return views.ItemPage(items=[item(one) for one in page.items], cursor=page.cursor)


def workload(job: Job, ended: Sequence[Item]) -> views.WorkloadDocument:
    """Return a workload with what has become of its images."""
    return views.WorkloadDocument(
        **dict(summary(job)), filtered_images=images.filtered(ended), failed_images=images.failed(ended),
        state=job.state, owner=job.owner.name, ended_at=job.ended_at, error=translate.failure(job.error),
        pending=[one.message for one in job.pending],
    )  # fmt: skip


def summary(job: Job) -> views.WorkloadSummary:
    """Return a workload as it stands in a list."""
    return views.WorkloadSummary(
        workload_id=job.id, workload_name=job.spec.name, filter=images.filter_of(job), status=images.status(job),
        running_jobs=images.running_jobs(job), images=images.counts(job),
        closed=job.is_terminal or (job.items is not None and job.items.closed), created_at=job.created_at,
    )  # fmt: skip
