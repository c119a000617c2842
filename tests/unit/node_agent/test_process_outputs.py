"""What a plain process has left is kept, also beside what the agent may not read."""

import os
from pathlib import Path
from typing import Any

import pytest

from services.node_agent.adapters import processes
from services.node_agent.core.container import Key


async def test_what_may_not_be_read_keeps_nothing_else_from_being_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, key = processes.ProcessRuntime(tmp_path / "attempts", {}), Key("j1", 1)
    outputs = runtime._of(key) / "outputs"
    outputs.mkdir(parents=True)
    (outputs / "a secret").write_text("x")
    (outputs / "a shut folder").mkdir()
    (outputs / "result").write_text("42")
    may = os.access

    def access(path: Any, mode: int) -> bool:  # tests may run as root, who may read everything
        return Path(path).name not in {"a secret", "a shut folder"} and may(path, mode)

    monkeypatch.setattr(processes.os, "access", access)
    found = [(one.path, one.kind, one.body) async for one in runtime.outputs(key, "")]
    assert found == [("a secret", "other", None), ("a shut folder", "other", None), ("result", "file", b"42")]
