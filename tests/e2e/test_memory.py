"""A gigabyte goes in and out; nobody's memory grows with it."""

import hashlib
import os
import zipfile

import pytest

from tests.e2e.stack import Stack

SIZE_MB = 1024
LIMIT_MB = 150


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_gigabyte_in_and_out_stays_under_150_mb_in_gateway_agent_and_storage(stack: Stack, tmp_path) -> None:
    digest = hashlib.sha256()
    path = tmp_path / "big.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        archive.open("big.bin", "w", force_zip64=True) as out,
    ):
        for _ in range(SIZE_MB):
            block = os.urandom(1024 * 1024)
            digest.update(block)
            out.write(block)

    def body():
        with path.open("rb") as file:
            while block := file.read(1024 * 1024):
                yield block

    artifact = stack.http.put("/artifacts", content=body(), timeout=300)
    assert artifact.status_code in {200, 201}, artifact.text
    command = 'mv big.bin "$WHERRY_OUTPUTS/big.bin"'
    job_id = stack.submit(stack.spec(command, source=artifact.json()["artifact_id"], resources={"disk": "3GiB"}))
    job = stack.wait_end(job_id, timeout=400)
    assert job["state"] == "succeeded", job

    received = hashlib.sha256()
    with stack.http.stream("GET", f"/jobs/{job_id}/outputs/big.bin", timeout=300) as answer:
        for part in answer.iter_bytes():
            received.update(part)
    assert received.hexdigest() == digest.hexdigest()
    peaks = {service: round(stack.peak_memory_mb(service)) for service in ("gateway", "node_agent", "storage")}
    print("peak resident memory, MB:", peaks)
    assert all(peak < LIMIT_MB for peak in peaks.values()), peaks
