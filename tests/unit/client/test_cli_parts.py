import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from client.wherry import config
from client.wherry.cli.main import app
from client.wherry.cli.spec import SpecOptions, build_spec, read_spec
from client.wherry.cli.words import ago, duration, harmless, plain, size
from client.wherry.errors import WherryError

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def test_options_win_over_the_file_and_lists_are_added_to():
    base = {
        "name": "a", "image": "x", "resources": {"cpus": 1, "memory": "1GiB"}, "labels": ["old"],
        "placement": {"tags": ["gpu"], "cluster": "east"}, "params": {"rate": 1, "seed": 2},
    }  # fmt: skip
    options = SpecOptions(
        image="y", cpus=2.5, tags=("lab",), labels=("new",), params=("rate=0.1", "name=text", 'deep={"a": [1]}'),
        env=("A=b=c",), notify_email=("ann@example.org",), notify_webhook=("https://example.org",), timeout="2h",
    )  # fmt: skip
    assert build_spec(base, options, "folder") == {
        "name": "a",
        "image": "y",
        "resources": {"cpus": 2.5, "memory": "1GiB"},
        "labels": ["old", "new"],
        "placement": {"tags": ["gpu", "lab"], "cluster": "east"},
        "params": {"rate": 0.1, "seed": 2, "name": "text", "deep": {"a": [1]}},
        "env": {"A": "b=c"},
        "timeouts": {"run": "2h"},
        "notify": [{"email": "ann@example.org"}, {"webhook": {"url": "https://example.org"}}],
    }


def test_needs_inputs_and_what_happens_when_a_node_is_cut_off_go_into_the_spec():
    options = SpecOptions(
        needs=("j1", "j2:any"), inputs=("model=job:j1/best.pt",), on_disconnect="stop", replace_after="10m",
        exclusive=True,
    )  # fmt: skip
    assert build_spec({"needs": ["j0"], "inputs": {"data": "job:j0"}}, options, None) == {
        "needs": ["j0", "j1", {"job": "j2", "on": "any"}],
        "inputs": {"data": "job:j0", "model": "job:j1/best.pt"},
        "on_disconnect": "stop", "replace_after": "10m", "exclusive": True,
    }  # fmt: skip


def test_what_was_not_said_is_not_sent():
    assert build_spec({}, SpecOptions(command="ls"), "folder") == {"command": "ls", "name": "folder"}


def test_a_cluster_a_node_a_disk_and_a_model_go_where_they_belong():
    options = SpecOptions(cluster="edge", node="n1", disk="1GiB", model="digits@2", tags=("lab",))
    assert build_spec({}, options, None) == {
        "model": "digits@2",
        "resources": {"disk": "1GiB"},
        "placement": {"cluster": "edge", "node": "n1", "tags": ["lab"]},
    }


def test_as_a_plain_process_the_files_image_does_not_matter():
    assert build_spec({"image": "x", "command": "ls"}, SpecOptions(runtime="process"), None) == {
        "command": "ls",
        "runtime": "process",
    }


@pytest.mark.parametrize("text", ["A", "=b", ""])
def test_a_variable_without_a_name_or_value_is_wrong_usage(text: str):
    with pytest.raises(typer.BadParameter):
        build_spec({}, SpecOptions(env=(text,)), None)


@pytest.mark.parametrize("content", ["{", "[1]", None])
def test_a_spec_file_that_is_none_is_wrong_usage(tmp_path: Path, content: str | None):
    path = tmp_path / "job.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(typer.BadParameter):
        read_spec(path)


def test_times_and_sizes_read_well():
    assert [duration(s) for s in (0.4, 59, 61, 3661, 90061)] == ["0 s", "59 s", "1 min 01 s", "1 h 01 min", "1 d 01 h"]
    assert [size(n) for n in (0, 1023, 1024, 1536, 5 * 1024**3)] == ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "5.0 GiB"]
    assert ago(NOW - timedelta(minutes=2), NOW) == "2 min 00 s ago"
    assert ago(NOW + timedelta(seconds=5), NOW) == "now"
    assert ago(None, NOW) == ""


def test_a_jobs_output_cannot_take_over_the_terminal():
    assert harmless("\x1b[31mred\x1b[0m\ttab") == "\x1b[31mred\x1b[0m\ttab"
    assert harmless("\x1b]0;title\x07\x1b[2Jx\x9b1m\r") == "]0;title[2Jx1m"
    assert plain("\x1b[31mred") == "red"


def test_the_login_is_kept_for_this_user_alone_and_for_that_server_alone(tmp_path: Path):
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    path = config.save(env, config.Credentials(url="https://a.example.org", user="ann", token="t"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert config.load(env).token == "t"
    assert config.load(env | {"WHERRY_URL": "https://b.example.org"}).token is None
    assert config.load(env | {"WHERRY_URL": "https://b.example.org", "WHERRY_TOKEN": "u"}).token == "u"
    config.forget(env)
    assert (config.load(env).token, config.load(env).url) == (None, "https://a.example.org")


def test_a_damaged_login_says_what_to_do(tmp_path: Path):
    path = config.save({"XDG_CONFIG_HOME": str(tmp_path)}, config.Credentials())
    path.write_text("{")
    with pytest.raises(WherryError, match="wherry login"):
        config.load({"XDG_CONFIG_HOME": str(tmp_path)})


def test_a_local_stack_is_found_from_below_it(tmp_path: Path):
    deep = tmp_path / "a/b"
    deep.mkdir(parents=True)
    with pytest.raises(WherryError, match="make up"):
        config.local_stack({"WHERRY_HOME": str(tmp_path / "none")}, deep)
    (tmp_path / ".wherry").mkdir()
    facts = {"url": "http://127.0.0.1:1", "user": "admin", "password": "p"}
    (tmp_path / ".wherry/credentials.json").write_text(json.dumps(facts))
    assert config.local_stack({}, deep).model_dump() == facts


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "", "http://", "http://h:port", "http://[::1"])
def test_an_address_that_is_none_is_said_to_be_that(tmp_path: Path, url: str):
    env = {"XDG_CONFIG_HOME": str(tmp_path), "WHERRY_URL": url or " "}
    with pytest.raises(WherryError) as caught:
        config.load(env)
    assert caught.value.code == "bad_url"


def test_what_the_disk_refuses_is_said_in_a_sentence(tmp_path: Path):
    (tmp_path / "file").touch()
    ended = CliRunner().invoke(app, ["models", "init", f"{tmp_path}/file/model", "--name", "digits"])
    assert (ended.exit_code, type(ended.exception)) == (5, SystemExit)
    assert f"{tmp_path}/file/model: Not a directory" in ended.output


@pytest.mark.parametrize("what", [["evaluate", "digits@new", "accuracy=0.9"], ["ask", "digits@", "better, please"]])
def test_a_version_that_is_no_number_is_not_taken_for_the_newest(what: list[str]):
    ended = CliRunner().invoke(app, ["models", *what], env={"WHERRY_URL": "http://127.0.0.1:9", "WHERRY_TOKEN": "none"})
    assert ended.exit_code == 2
    assert "is not the number of a version" in ended.output
