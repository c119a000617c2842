import io
import zipfile
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from services.gateway.adapters.training_zip import zip_of
from services.gateway.core import trainings
from shared.errors import FieldProblem, WherryError
from shared.events import Progress
from shared.job import Attempt, Failure, GangMember, Job, Owner
from shared.requests.jobs import JobView
from shared.spec import JobSpec
from shared.states import AttemptState, EndReason, JobState

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TRAIN = "def train(data):\n    return {}\n"
ARTIFACT = "a" + "b" * 25
COMMAND = ("python3", "train.py")


def wish(**fields: object) -> trainings.NewTraining:
    return trainings.NewTraining.model_validate({"algorithm": TRAIN, **fields})


def spec(**fields: object) -> JobSpec:
    return trainings.spec_of(wish(**fields), "default/image", COMMAND)


def view(job_spec: JobSpec, state: JobState = JobState.QUEUED, **changes: object) -> JobView:
    job = Job(id="j1", owner=Owner(id="u1", name="anna"), spec=job_spec, created_at=NOW, updated_at=NOW, state=state)
    return JobView(job=job.model_copy(update=changes), seq=1)


def shown(one: JobView) -> trainings.TrainingDocument:
    return trainings.document(one, lambda path: f"http://here{path}")


def member(role: str, index: int, state: JobState = JobState.RUNNING, exit_code: int | None = None) -> GangMember:
    return GangMember(
        job_id=f"j-{role}-{index}", role=role, index=index, node="n1", state=state, placed_at=NOW, exit_code=exit_code
    )


def problems_of(**modules: str) -> dict[str, str]:
    with pytest.raises(WherryError) as caught:
        trainings.check_modules(modules)
    assert caught.value.code == "invalid"
    return {one.field: one.message for one in caught.value.fields}


# --- code ------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_told_with_its_module_its_line_and_its_text() -> None:
    found = problems_of(helpers="x = 1\n\ndef f(:\n    pass\n", algorithm=TRAIN, preprocessing="if True:\nx = (1\n")
    assert set(found) == {"helpers", "preprocessing"}
    assert found["helpers"].startswith("line 3: ")
    assert found["helpers"].endswith("def f(:")
    assert found["preprocessing"].startswith("line 2: ")


def test_an_algorithm_that_cannot_define_train_is_refused_before_a_machine_is_used() -> None:
    assert "train(data, params, outputs)" in problems_of(algorithm="def fit(data): pass\n")["algorithm"]


@pytest.mark.parametrize(
    "text",
    [
        TRAIN,
        "async def train(data): pass",
        "from helpers import train",
        "from helpers import fit as train",
        "from helpers import *",
        "train = lambda data: {}",
        "if True:\n    def train(data): pass",
        "try:\n    import torch as train\nexcept ImportError:\n    train = None",
    ],
)
def test_whatever_may_bind_train_passes(text: str) -> None:
    trainings.check_modules({"algorithm": text})


@pytest.mark.parametrize("text", ["-" * 60_000 + "1", "a" + ".b" * 60_000, "x = '\0'", "(" * 500, "# coding: nonsense"])
def test_code_that_would_break_a_parser_is_a_problem_of_its_module(text: str) -> None:
    assert set(problems_of(helpers=text, algorithm=TRAIN)) == {"helpers"}


def test_reading_code_runs_none_of_it(tmp_path) -> None:
    mark = tmp_path / "ran"
    trainings.check_modules({"algorithm": f"open({str(mark)!r}, 'w')\n{TRAIN}", "helpers": "raise SystemExit(9)"})
    assert not mark.exists()


def test_a_module_has_its_limit() -> None:
    with pytest.raises(ValidationError):
        wish(helpers="#" * (trainings.CODE_CHARS_MAX + 1))


def test_the_same_modules_make_the_same_zip_with_the_program_that_runs_them() -> None:
    modules = wish(helpers="x = 'ä'").modules()
    content = zip_of(modules)
    assert content == zip_of(dict(reversed(modules.items())))
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert set(archive.namelist()) == {"train.py", "algorithm.py", "preprocessing.py", "helpers.py"}
        assert archive.read("helpers.py").decode() == "x = 'ä'"
        assert b"def main" in archive.read("train.py")


# --- its job ---------------------------------------------------------------------------------------------------------


def test_a_training_is_a_run_job_in_the_image_for_trainings() -> None:
    made = spec(name="digits", dataset="digits@2", params={"epochs": 3}, timeouts="2h", resources={"gpus": 1})
    assert (made.view, made.kind, made.image, made.argv()) == ("training", "run", "default/image", COMMAND)
    assert made.inputs["dataset"].source == "dataset:digits@2"
    assert (made.params, made.timeouts.run, made.resources.gpus, made.name) == ({"epochs": 3}, 7200, 1, "digits")
    assert spec(image="my/own").image == "my/own"
    assert spec(runtime="process").image is None
    assert not spec().inputs


@pytest.mark.parametrize(
    ("dataset", "source"),
    [
        ("digits", "dataset:digits"),
        ("digits@3", "dataset:digits@3"),
        (ARTIFACT, f"artifact:{ARTIFACT}"),
        (f"artifact:{ARTIFACT}", f"artifact:{ARTIFACT}"),
        ("https://example.org/d.csv", "https://example.org/d.csv"),
        ("dataset:digits", "dataset:digits"),
    ],
)
def test_a_data_set_is_a_name_an_artifact_or_a_url(dataset: str, source: str) -> None:
    assert trainings.source_of(dataset) == source


def test_a_data_set_that_is_none_of_these_is_a_problem_of_that_field() -> None:
    with pytest.raises(ValidationError):
        spec(dataset="no such/thing")
    assert trainings.field_of(FieldProblem(field="inputs.dataset", message="m")).field == "dataset"
    assert trainings.field_of(FieldProblem(field="params.x", message="m")).field == "params.x"


def test_a_distributed_training_is_a_connected_gang_whose_first_member_is_a_worker() -> None:
    made = spec(
        distributed={"parameter_servers": 1, "workers": 2, "server_resources": {"memory": "2GiB"}}, max_attempts=3
    )
    assert made.kind == "gang"
    assert made.gang is not None
    assert made.gang.connected
    assert list(made.gang.roles) == ["worker", "ps"]
    assert (made.gang.roles["worker"].count, made.gang.roles["ps"].count) == (2, 1)
    assert made.gang.roles["worker"].start_after == ("ps",)
    assert made.gang.roles["ps"].resources is not None
    assert made.gang.roles["ps"].resources.memory == 2 * 1024**3
    assert shown(view(made)).distributed == trainings.Distribution.model_validate(
        {"parameter_servers": 1, "workers": 2, "server_resources": {"memory": "2GiB"}}
    )


@pytest.mark.parametrize(("more", "serves"), [("", True), ("def serve(cluster): ...", False)])
def test_servers_that_nothing_ends_are_stopped_after_the_workers(more: str, serves: bool) -> None:  # noqa: FBT001
    made = spec(algorithm=f"def train(): ...\n{more}", distributed={"workers": 1})
    assert made.gang is not None
    assert {name: role.serves for name, role in made.gang.roles.items()} == {"worker": False, "ps": serves}


def test_a_chief_trains_once_all_are_there_that_work_for_it() -> None:
    wish = {"chief": True, "parameter_servers": 1, "workers": 2}
    made = spec(algorithm="def train(): ...\ndef serve(): ...", distributed=wish)
    assert made.gang is not None
    assert {name: (role.count, role.serves) for name, role in made.gang.roles.items()} == {
        "chief": (1, False), "worker": (2, True), "ps": (1, True),
    }  # fmt: skip
    assert next(iter(made.gang.roles)) == "chief"  # whose outputs are the training's
    assert made.gang.roles["chief"].start_after == ("ps", "worker")
    assert shown(view(made)).distributed == trainings.Distribution.model_validate(wish)


def test_workers_alone_wait_for_nobody() -> None:
    made = spec(distributed={"parameter_servers": 0, "workers": 3})
    assert made.gang is not None
    assert list(made.gang.roles) == ["worker"]
    assert made.gang.roles["worker"].start_after == ()


# --- how it is seen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (JobState.QUEUED, "initializing"),
        (JobState.PLACED, "initializing"),
        (JobState.STARTING, "initializing"),
        (JobState.RUNNING, "training"),
        (JobState.FINISHING, "training"),
        (JobState.SUCCEEDED, "completed"),
        (JobState.FAILED, "failed"),
        (JobState.TIMED_OUT, "failed"),
        (JobState.CANCELLED, "terminated"),
    ],
)
def test_each_state_has_its_status_word(state: JobState, status: str) -> None:
    assert shown(view(spec(), state)).status == status
    assert state.value in trainings.states_of([status])


def test_status_words_are_asked_for_one_by_one_or_with_commas() -> None:
    assert trainings.states_of(None) == ()
    assert set(trainings.states_of(["training, terminated"])) == {"running", "finishing", "cancelled"}
    with pytest.raises(WherryError) as caught:
        trainings.states_of(["running"])
    assert caught.value.fields[0].field == "status"


def test_only_a_completed_training_has_a_url_to_download_from() -> None:
    assert shown(view(spec(), JobState.RUNNING)).download_url is None
    assert shown(view(spec(), JobState.FAILED)).download_url is None
    assert shown(view(spec(), JobState.SUCCEEDED)).download_url == "http://here/v1/jobs/j1/outputs"


def test_of_a_distributed_training_the_first_workers_outputs_are_its_own() -> None:
    gang = spec(distributed={"workers": 2})
    assert shown(view(gang)).output_job is None
    members = (member("worker", 0), member("worker", 1), member("ps", 0))
    done = shown(view(gang, JobState.SUCCEEDED, members=members))
    assert (done.output_job, done.download_url) == ("j-worker-0", "http://here/v1/jobs/j-worker-0/outputs")
    assert len(done.members) == 3


def test_progress_is_shown_as_the_program_says_it() -> None:
    progress = Progress(fraction=0.5, message="epoch 1 of 2", at=NOW)
    one = view(spec(), JobState.RUNNING).model_copy(update={"progress": progress})
    found = shown(one).progress
    assert found is not None
    assert (found.fraction, found.message) == (0.5, "epoch 1 of 2")


def test_a_distributed_training_is_as_far_as_its_first_worker_and_began_with_it() -> None:
    began = Attempt(number=1, node="n1", state=AttemptState.RUNNING, placed_at=NOW, running_at=NOW)
    first = view(spec(), JobState.RUNNING, attempts=(began,))
    first = first.model_copy(update={"progress": Progress(fraction=0.25, message="", at=NOW)})
    gang = view(spec(distributed={"workers": 2}), JobState.RUNNING, members=(member("worker", 0), member("worker", 1)))
    found = trainings.document(gang, lambda path: path, first)
    assert found.progress is not None
    assert (found.progress.fraction, found.started_at) == (0.25, NOW)
    assert shown(gang).started_at is None


def attempt(exit_code: int | None) -> Attempt:
    return Attempt(number=1, node="n1", state=AttemptState.FAILED, placed_at=NOW, exit_code=exit_code)


def test_the_program_at_fault_is_the_one_that_failed() -> None:
    assert trainings.at_fault(view(spec(), JobState.FAILED, attempts=(attempt(1),)).job) == "j1"
    assert trainings.at_fault(view(spec(), JobState.FAILED, attempts=(attempt(None),)).job) is None
    members = (member("worker", 0, JobState.CANCELLED), member("worker", 1, JobState.FAILED, 1), member("ps", 0))
    gang = view(spec(distributed={"workers": 2}), JobState.FAILED, members=members)
    assert trainings.at_fault(gang.job) == "j-worker-1"
    lost = Failure(reason=EndReason.NODE_LOST, message="member ps-0: node n2 was not heard for 31 s")
    assert trainings.at_fault(gang.job.model_copy(update={"error": lost})) is None  # its worker only missed the server


def test_the_last_line_of_the_runner_says_why() -> None:
    error = Failure(reason=EndReason.EXIT_CODE, message="The program ended with exit code 1.")
    failed = shown(view(spec(), JobState.FAILED, error=error))
    said = "Traceback\n  …\nValueError: x\ntraining: algorithm.py, line 3: ValueError: x\n"
    found = trainings.with_reason(failed, said, "training: ").error
    assert found is not None
    assert found.message == "The program ended with exit code 1: algorithm.py, line 3: ValueError: x"
    assert trainings.with_reason(failed, "Killed\n", "training: ") == failed
