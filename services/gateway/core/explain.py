"""What became of a job that has ended, in the words in which the scheduler explains those that have not."""

from shared.job import Job
from shared.requests.explain import Explanation
from shared.states import JobState

_HOW = {
    JobState.SUCCEEDED: "It has succeeded",
    JobState.FAILED: "It has failed",
    JobState.CANCELLED: "It was cancelled",
    JobState.TIMED_OUT: "It has timed out",
}


def ended(job: Job) -> Explanation:
    """Return why an ended job is where it is: how it ended, and where its last attempt was."""
    last = job.attempts[-1] if job.attempts else None
    told = f"{_HOW[job.state]}: {job.error.message}" if job.error else _HOW[job.state]
    sentences = [told if told.endswith((".", "!", "?")) else f"{told}."]
    if last is None:
        sentences.append("It was never placed on a node.")
    else:
        sentences.append(f"Its last attempt, number {last.number}, was on node {last.node}.")
        if last.score:
            parts = ", ".join(f"{name} {value:.3g}" for name, value in sorted(last.score.items()))
            sentences.append(f"That node was chosen for its score: {parts}.")
    return Explanation(
        state=job.state.value,
        would_start=False,
        node=last.node if last else None,
        score=last.score if last else {},
        text=" ".join(sentences),
    )
