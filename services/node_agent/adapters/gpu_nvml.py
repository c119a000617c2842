"""GPUs, as NVIDIA's driver reports them. No driver is no error: the machine has none."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import pynvml

from shared.fleet import Gpu

T = TypeVar("T")


class NvmlGpus:
    """The GPUs of this machine. Asks again for the driver where it was missing."""

    def __init__(self) -> None:
        self._is_open = False
        self.problem = ""

    def read(self) -> tuple[Gpu, ...]:
        """Return every GPU with its use now; none where there is no driver (`problem` says why)."""
        try:
            if not self._is_open:
                pynvml.nvmlInit()
                self._is_open = True
            self.problem = ""
            return tuple(_gpu(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount()))
        except pynvml.NVMLError as error:
            self.problem = str(error)
            self.close()
            return ()

    def close(self) -> None:
        """Let go of the driver."""
        if self._is_open:
            self._is_open = False
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()


def _gpu(handle: Any) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        memory_total=int(memory.total),
        memory_used=int(memory.used),
        # A MIG device, a laptop or a virtual GPU does not answer everything.
        utilisation=_or(0.0, lambda: float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        temperature=_or(None, lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))),
        processes=_or(0, lambda: len(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))),
    )


def _or(default: T, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except pynvml.NVMLError:
        return default


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
