"""What NVML says, as the heartbeat has it. No GPU is in reach of these tests: the library is played, call by call."""

from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from services.node_agent.adapters import gpu_nvml
from services.node_agent.adapters.gpu_nvml import NvmlGpus
from shared.fleet import Gpu


class PlayedNvml:
    """Stands for the driver: two cards, of which the second does not answer everything (as MIG devices do not)."""

    NVMLError = pynvml.NVMLError
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def __init__(self) -> None:
        self.opened = 0
        self.is_lost = False

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            assert hasattr(pynvml, name), f"pynvml has no {name}"
            return getattr(self, f"_{name}")(*args)

        return call

    def _nvmlInit(self) -> None:  # noqa: N802
        self.opened += 1
        if self.is_lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    def _nvmlShutdown(self) -> None:  # noqa: N802
        self.opened -= 1

    def _nvmlDeviceGetCount(self) -> int:  # noqa: N802
        if self.is_lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return 2

    def _nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def _nvmlDeviceGetUUID(self, handle: int) -> str | bytes:  # noqa: N802
        return b"GPU-0" if handle == 0 else "GPU-1"  # older bindings give bytes

    def _nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return f"card {handle}"

    def _nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=80 * 2**30, used=2**30 * handle)

    def _answer(self, handle: int, value: Any) -> Any:
        if handle == 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value

    def _nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:  # noqa: N802
        return self._answer(handle, SimpleNamespace(gpu=37, memory=5))

    def _nvmlDeviceGetTemperature(self, handle: int, _: int) -> int:  # noqa: N802
        return self._answer(handle, 41)

    def _nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[int]:  # noqa: N802
        return self._answer(handle, [1, 2])


def test_cards_are_read_and_what_one_does_not_answer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_nvml, "pynvml", PlayedNvml())
    assert NvmlGpus().read() == (
        Gpu(
            uuid="GPU-0", name="card 0", memory_total=80 * 2**30, memory_used=0, utilisation=37.0, temperature=41.0,
            processes=2,
        ),
        Gpu(uuid="GPU-1", name="card 1", memory_total=80 * 2**30, memory_used=2**30),
    )  # fmt: skip


def test_a_driver_that_goes_away_and_comes_back_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = PlayedNvml()
    monkeypatch.setattr(gpu_nvml, "pynvml", driver)
    gpus = NvmlGpus()
    assert len(gpus.read()) == 2
    driver.is_lost = True
    assert gpus.read() == ()
    assert gpus.problem
    driver.is_lost = False
    assert len(gpus.read()) == 2
    assert gpus.problem == ""


def test_a_machine_without_a_driver_has_no_gpus() -> None:
    gpus = NvmlGpus()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert gpus.read() == ()
        assert gpus.problem
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has one")
