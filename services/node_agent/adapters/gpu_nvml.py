"""GPUs, as NVIDIA's driver reports them. No driver is no error: the machine has none."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import pynvml

from services.node_agent.adapters.reader_thread import in_daemon_thread
from services.node_agent.core.use import GpuUse
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

    def look(self) -> GpuUse:
        """Return what `read` does, and what each process has on them."""
        gpus = self.read()
        with suppress(pynvml.NVMLError):
            return GpuUse(gpus, {gpu.uuid: _processes(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)) for gpu in gpus})
        return GpuUse(gpus)

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


def _processes(handle: Any) -> dict[int, int]:
    """Return the bytes of each process by its id; a driver may name processes and not say how much they have."""
    running = _or([], lambda: list[Any](pynvml.nvmlDeviceGetComputeRunningProcesses(handle)))
    return {one.pid: int(one.usedGpuMemory) for one in running if one.usedGpuMemory}


def _or(default: T, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except pynvml.NVMLError:
        return default


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class PatientGpus:
    """Reads GPUs in a thread of its own: a driver that hangs holds up that thread and nothing else.

    Args:
        gpus: the driver.
        limit_s: how long to wait for it; then what it said before is given.
    """

    def __init__(self, gpus: NvmlGpus, limit_s: float = 2.0) -> None:
        self._gpus = gpus
        self._limit_s = limit_s
        self.last = GpuUse()
        self._reading: asyncio.Future[GpuUse] | None = None
        self.problem = ""

    async def read(self) -> tuple[Gpu, ...]:
        """Return every GPU, as of now or (`problem` says so) of the last time that the driver answered."""
        if self._reading is None:
            self._reading = in_daemon_thread("nvml", self._gpus.look)
        done, _ = await asyncio.wait({self._reading}, timeout=self._limit_s)
        if done:
            reading, self._reading, self.problem = self._reading, None, ""
            self.last = reading.result()
        else:
            self.problem = f"the driver has not answered for {self._limit_s:g} s"
        return tuple(self.last.gpus)

    def close(self) -> None:
        """Let go of the driver, unless it hangs."""
        if self._reading is None:
            self._gpus.close()
