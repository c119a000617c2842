import pytest

from services.gateway.core import needs
from shared.requests.accounts import Principal
from shared.spec import JobSpec

ANNA = Principal(user_id="u1", name="anna")
ADMIN = Principal(user_id="u0", name="root", role="admin")
A, B, C = ("j" + letter * 25 for letter in "abc")


def spec(**fields: object) -> JobSpec:
    return JobSpec.model_validate({"image": "busybox", **fields})


@pytest.mark.parametrize(
    "source", [f"job:{A}", f"job:{A}/out", f"job:{A}/out/", f"job:{A}/größe x/b.pt", f"job:{A}/..a"]
)
def test_a_path_below_the_outputs_is_usable(source: str) -> None:
    assert needs.unusable(spec(inputs={"in": source})) == []


@pytest.mark.parametrize("path", ["..", "../x", "a/../b", "/etc", "a//b", "./a", "a/.", "a\\b", "/"])
def test_a_path_that_leads_elsewhere_is_named(path: str) -> None:
    (found,) = needs.unusable(spec(inputs={"ok": f"job:{A}", "in": f"job:{A}/{path}"}))
    assert (found.field, path in found.message.replace("\\\\", "\\")) == ("inputs.in", True)


def test_a_job_cannot_be_needed_in_two_ways() -> None:
    (found,) = needs.unusable(spec(needs=[A, B, {"job": A, "on": "any"}]))
    assert found.field == "needs[2]"
    assert needs.unusable(spec(needs=[A, A])) == []


def test_what_is_not_there_or_not_theirs_is_named_by_its_field() -> None:
    whole = spec(needs=[A, B, C], inputs={"model": f"job:{B}/best.pt", "data": f"job:{A}"})
    owners = {A: "u1", B: "u2", C: None}
    assert [found.field for found in needs.not_theirs(whole, ANNA, owners)] == ["needs[1]", "needs[2]", "inputs.model"]


def test_an_administrator_waits_for_anybodys_job_and_gets_only_what_their_own_left() -> None:
    whole = spec(needs=[A, C], inputs={"theirs": f"job:{A}", "own": f"job:{B}"})
    owners = {A: "u1", B: "u0", C: None}
    assert [found.field for found in needs.not_theirs(whole, ADMIN, owners)] == ["needs[1]", "inputs.theirs"]
