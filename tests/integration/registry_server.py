"""A real Docker registry (Debian's docker-registry), and images pushed to it without an engine."""

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from infra.local.ports import free_port

CONFIG = """\
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}"}}
{auth}"""
AUTH = "auth: {{htpasswd: {{realm: wherry, path: {path}}}}}\n"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"


class RegistryServer:
    """Use as ``with RegistryServer(folder) as registry:``. *htpasswd*: lines of logins that may come in."""

    def __init__(self, folder: Path, htpasswd: str = "", port: int = 0) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.htpasswd = htpasswd
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        program = shutil.which("docker-registry")
        if program is None:
            pytest.skip("there is no docker-registry here: apt-get install docker-registry")
        self.folder.mkdir(parents=True, exist_ok=True)
        auth = ""
        if self.htpasswd:
            (self.folder / "htpasswd").write_text(self.htpasswd)
            auth = AUTH.format(path=self.folder / "htpasswd")
        config = self.folder / "config.yml"
        config.write_text(CONFIG.format(root=self.folder / "data", port=self.port, auth=auth))
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
        give_up_at = time.monotonic() + 120
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < give_up_at
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(90)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://{self.host}/v2/", timeout=10).status_code in (200, 401)
        except httpx.TransportError:
            return False

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def push(
        self, repository: str, labels: Mapping[str, str] | None, tag: str = "latest", layers: int = 1,
        auth: tuple[str, str] | None = None,
    ) -> str:  # fmt: skip
        """Push an image and return its digest."""
        with httpx.Client(base_url=f"http://{self.host}/v2/{repository}", auth=auth, timeout=90) as http:
            pushed = [_blob(http, _layer(f"{repository} {tag} {number}")) for number in range(layers)]
            config: dict[str, Any] = {
                "architecture": "amd64", "os": "linux", "config": {"Labels": labels, "Cmd": ["true"]},
                "rootfs": {"type": "layers", "diff_ids": [one["digest"] for one in pushed]},
            }  # fmt: skip
            described = _blob(http, json.dumps(config).encode()) | {"mediaType": CONFIG_TYPE}
            manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "layers": pushed, "config": described}
            answer = http.put(f"/manifests/{tag}", json=manifest, headers={"Content-Type": MANIFEST})
            answer.raise_for_status()
            return answer.headers["Docker-Content-Digest"]


def _layer(text: str) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        info = tarfile.TarInfo("file")
        info.size = len(text)
        archive.addfile(info, io.BytesIO(text.encode()))
    return held.getvalue()


def _blob(http: httpx.Client, body: bytes) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    place = http.post("/blobs/uploads/")
    place.raise_for_status()
    url = httpx.URL(place.headers["Location"]).copy_merge_params({"digest": digest})
    http.put(url, content=body, headers={"Content-Type": "application/octet-stream"}).raise_for_status()
    kind = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    return {"mediaType": kind, "digest": digest, "size": len(body)}
