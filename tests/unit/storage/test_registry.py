import pytest

from services.storage.core.registry import (
    challenge,
    chosen_manifest,
    chosen_tag,
    cog_params,
    config_of,
    describe,
    labels_of,
    model_name,
    next_page,
    parse,
)
from shared.errors import WherryError

DIGEST = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "host", "repository", "what"),
    [
        ("busybox", "docker.io", "library/busybox", "latest"),
        ("me/tool:1.2", "docker.io", "me/tool", "1.2"),
        ("localhost/tool", "localhost", "tool", "latest"),
        ("reg.example.org:5000/a/b/c:x", "reg.example.org:5000", "a/b/c", "x"),
        (f"reg.example.org/a@{DIGEST}", "reg.example.org", "a", DIGEST),
        (f"reg.example.org/a:tag@{DIGEST}", "reg.example.org", "a", DIGEST),
    ],
)
def test_a_reference_is_read_as_docker_reads_it(text: str, host: str, repository: str, what: str):
    found = parse(text)
    assert (found.host, found.repository, found.what) == (host, repository, what)


@pytest.mark.parametrize(
    "text", ["", "UPPER", "a b", "a:", "a@sha256:00", "../x", "a//b", "host:port/x", "a:b:c", "a/../b"]
)
def test_what_is_no_reference_is_refused(text: str):
    with pytest.raises(WherryError) as refused:
        parse(text)
    assert refused.value.code == "invalid"


def test_of_an_index_the_image_for_this_kind_of_machine_is_taken_and_never_an_attestation():
    def entry(number: int, os: str, arch: str, **more: object) -> dict[str, object]:
        return {"digest": f"sha256:{number:064x}", "platform": {"os": os, "architecture": arch}, **more}

    attestation = entry(1, "unknown", "unknown", annotations={"vnd.docker.reference.type": "attestation-manifest"})
    index = {
        "manifests": [attestation, entry(2, "linux", "arm64"), entry(3, "windows", "amd64"), entry(4, "linux", "amd64")]
    }
    assert chosen_manifest(index) == f"sha256:{4:064x}"
    assert chosen_manifest({"manifests": [attestation, entry(2, "linux", "arm64")]}) == f"sha256:{2:064x}"
    assert chosen_manifest({"manifests": [attestation]}) is None
    assert chosen_manifest({"manifests": "x"}) is None


def test_what_a_hostile_registry_answers_is_understood_or_left_out():
    assert config_of({"config": {"digest": DIGEST}, "layers": [{"size": 3}, {"size": -9}, {"size": "x"}, 7]}) == (
        DIGEST,
        3,
    )
    assert config_of({"config": {"digest": "../../x"}}) is None
    assert config_of({"config": 3}) is None
    assert labels_of({"config": {"Labels": {"a": "b", "c": 3}}}) == {"a": "b"}
    assert labels_of({"config": {"Labels": None}}) == labels_of({"config": []}) == {}


def test_labels_describe_a_model_and_what_cannot_be_understood_is_remarked():
    found = describe(
        {
            "io.wherry.model.name": "Not A Name",
            "io.wherry.model.params": "[1]",
            "org.opencontainers.image.description": "Words.",
        }
    )
    assert (found.name, found.description, found.params) == (None, "Words.", None)
    assert [remark.split(" is ")[0] for remark in found.remarks] == ["io.wherry.model.name", "io.wherry.model.params"]


def test_cogs_schema_is_taken_with_all_that_it_refers_to_and_nothing_else():
    document = {
        "components": {
            "schemas": {
                "Input": {
                    "type": "object",
                    "properties": {
                        "scheduler": {"allOf": [{"$ref": "#/components/schemas/scheduler"}], "default": "K"}
                    },
                },
                "scheduler": {"enum": ["K", "L"], "x": {"$ref": "#/components/schemas/deep"}},
                "deep": {"type": "string"},
                "Output": {"type": "string"},
            }
        }
    }
    found = cog_params(document)
    assert found["properties"]["scheduler"]["allOf"] == [{"$ref": "#/$defs/scheduler"}]
    assert set(found["$defs"]) == {"scheduler", "deep"}
    assert found["$defs"]["scheduler"]["x"] == {"$ref": "#/$defs/deep"}
    with pytest.raises(ValueError, match="no components"):
        cog_params({})


def test_the_newest_tag_is_the_greatest_by_its_numbers():
    assert chosen_tag(["1.9", "1.10", "1.2"], "latest") == "1.10"
    assert chosen_tag(["1.9", "latest"], "latest") == "latest"
    assert chosen_tag([], "latest") is None


def test_names_pages_and_challenges():
    assert model_name("library/busybox") == "busybox"
    assert model_name("team/vision/digits") == "team.vision.digits"
    assert next_page('</v2/_catalog?last=b&n=2>; rel="next"') == "/v2/_catalog?last=b&n=2"
    assert next_page(None) is None
    header = 'Bearer realm="https://auth.example.org/token",service="reg",scope="repository:a:pull"'
    assert challenge(header) == (
        "bearer", {"realm": "https://auth.example.org/token", "service": "reg", "scope": "repository:a:pull"},
    )  # fmt: skip


@pytest.mark.parametrize("depth", [300, 700, 900, 950, 2000])
@pytest.mark.parametrize("label", ["io.wherry.model.params", "run.cog.openapi_schema"])
def test_a_schema_of_any_depth_is_taken_or_remarked_upon(label: str, depth: int):
    schema = '{"a":' * depth + "1" + "}" * depth
    text = schema if label == "io.wherry.model.params" else f'{{"components": {{"schemas": {{"Input": {schema}}}}}}}'
    found = describe({label: text})
    assert (found.params is None) is bool(found.remarks)


@pytest.mark.parametrize("tag", ["²", "9" * 5000, "v\n", "\ud800", "", "1/2"])
def test_what_is_no_tag_is_not_chosen(tag: str):
    assert chosen_tag([tag], "latest") is None
    assert chosen_tag([tag, "1.2"], "latest") == "1.2"
    assert chosen_tag([tag, "1.2"], tag) == "1.2"


def test_a_layer_has_no_size_that_no_database_keeps():
    layers = [{"size": 5}, {"size": 10**30}, {"size": -1}, {"size": "7"}]
    assert config_of({"config": {"digest": DIGEST}, "layers": layers}) == (DIGEST, 5)
