# ruff: noqa: N802, ARG002 - calls of the driver are named and made as its manual has them
"""The GPU self-test against a stand-in for the driver's library, which does what CUDA's manual says of each call."""

import ctypes
import importlib.util
import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[3] / "images/training/selftest/gpu.py"
SUCCESS, INVALID, NO_DEVICE = 0, 1, 100
MEMORY = 80 * 2**30


def _loaded() -> ModuleType:
    found = importlib.util.spec_from_file_location("selftest_gpu", FILE)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


gpu = _loaded()


def set_to(pointer: Any, kind: Any, value: Any) -> None:
    ctypes.cast(pointer, ctypes.POINTER(kind))[0] = value


class Cuda:
    """A machine with so many GPUs, as ``libcuda.so.1`` shows it. Handles and addresses are made up and checked."""

    def __init__(self, gpus: int = 1, *, wrong_at: int | None = None, full: bool = False) -> None:
        self.gpus, self.wrong_at, self.full = gpus, wrong_at, full
        self.memory: dict[int, bytearray] = {}
        self.retained = 0
        self.launched: list[tuple[int, int]] = []
        self._addresses = itertools.count(0x7F0000000000, 0x1000000)
        self._waiting: list[tuple[int, int, int, int]] = []

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return NO_DEVICE if self.gpus < 0 else SUCCESS

    def cuGetErrorString(self, code: int, text: Any) -> int:
        words = {INVALID: b"invalid argument", NO_DEVICE: b"no CUDA-capable device is detected", 2: b"out of memory"}
        set_to(text, ctypes.c_char_p, words[code])
        return SUCCESS

    def cuDriverGetVersion(self, found: Any) -> int:
        set_to(found, ctypes.c_int, 12040)
        return SUCCESS

    def cuDeviceGetCount(self, found: Any) -> int:
        set_to(found, ctypes.c_int, self.gpus)
        return SUCCESS

    def cuDeviceGet(self, found: Any, index: int) -> int:
        set_to(found, ctypes.c_int, 40 + index)
        return SUCCESS

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:
        assert size > 20
        name.value = f"Stand-in {device}".encode()
        return SUCCESS

    def cuDeviceTotalMem_v2(self, found: Any, device: int) -> int:
        set_to(found, ctypes.c_size_t, MEMORY)
        return SUCCESS

    def cuDeviceGetAttribute(self, found: Any, what: int, device: int) -> int:
        set_to(found, ctypes.c_int, {75: 9, 76: 0}[what])
        return SUCCESS

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:
        self.retained += 1
        set_to(context, ctypes.c_void_p, 0xC0)
        return SUCCESS

    def cuDevicePrimaryCtxRelease_v2(self, device: int) -> int:
        self.retained -= 1
        return SUCCESS

    def cuCtxSetCurrent(self, context: Any) -> int:
        return SUCCESS if context.value == 0xC0 else INVALID

    def cuModuleLoadData(self, module: Any, image: Any) -> int:
        assert b".visible .entry add(" in image.value  # the text ends with a null, as C wants it
        set_to(module, ctypes.c_void_p, 0xA0)
        return SUCCESS

    def cuModuleGetFunction(self, function: Any, module: Any, name: Any) -> int:
        assert (module.value, name.value) == (0xA0, b"add")
        set_to(function, ctypes.c_void_p, 0xF0)
        return SUCCESS

    def cuMemAlloc_v2(self, place: Any, size: Any) -> int:
        if self.full and len(self.memory) == 2:
            return 2
        address = next(self._addresses)
        self.memory[address] = bytearray(size.value)
        set_to(place, ctypes.c_uint64, address)
        return SUCCESS

    def cuMemFree_v2(self, place: Any) -> int:
        del self.memory[place.value]
        return SUCCESS

    def cuMemcpyHtoD_v2(self, place: Any, source: Any, size: Any) -> int:
        self.memory[place.value][:] = ctypes.string_at(source, size.value)
        return SUCCESS

    def cuMemcpyDtoH_v2(self, target: Any, place: Any, size: Any) -> int:
        assert not self._waiting, "read before the kernel was waited for"
        ctypes.memmove(target, bytes(self.memory[place.value]), size.value)
        return SUCCESS

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:
        blocks, by, bz, threads, ty, tz, shared, stream, pointers, extra = rest
        assert (function.value, by, bz, ty, tz, shared, stream, extra) == (0xF0, 1, 1, 1, 1, 0, None, None)
        left, right, sums = (ctypes.c_uint64.from_address(pointers[index]).value for index in range(3))
        count = ctypes.c_uint32.from_address(pointers[3]).value
        assert blocks * threads >= count > (blocks - 1) * threads
        self.launched.append((blocks, threads))
        self._waiting.append((left, right, sums, count))
        return SUCCESS

    def cuCtxSynchronize(self) -> int:
        for left, right, sums, count in self._waiting:
            a, b, c = (memoryview(self.memory[place]).cast("f") for place in (left, right, sums))
            for index in range(count):
                c[index] = a[index] + b[index]
            if self.wrong_at is not None:
                c[self.wrong_at] += 1
        self._waiting.clear()
        return SUCCESS


def test_every_gpu_is_named_and_computes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "COUNT", 5000)
    cuda = Cuda(gpus=2)
    found = gpu.examine(gpu.Driver(cuda))
    assert found["driver"] == "12.4"
    assert [one["name"] for one in found["gpus"]] == ["Stand-in 40", "Stand-in 41"]
    assert all((one["memory"], one["compute_capability"]) == (MEMORY, "9.0") for one in found["gpus"])
    assert len(cuda.launched) == 2
    assert (cuda.memory, cuda.retained) == ({}, 0)  # nothing is left behind
    assert "::progress 1.00::Stand-in 41 computes" in capsys.readouterr().out


def test_a_number_of_sums_that_fills_no_whole_block_is_computed_too() -> None:
    cuda = Cuda()
    gpu.add_vectors(gpu.Driver(cuda), 40, count=1000)
    assert cuda.launched == [(4, 256)]


def test_one_wrong_sum_is_a_gpu_that_does_not_compute() -> None:
    with pytest.raises(gpu.DriverError, match="1 of 1000 sums are wrong"):
        gpu.add_vectors(gpu.Driver(Cuda(wrong_at=999)), 40, count=1000)


def test_what_the_driver_refuses_is_told_in_its_words_and_nothing_is_left_behind() -> None:
    cuda = Cuda(full=True)
    with pytest.raises(gpu.DriverError, match=r"cuMemAlloc_v2: out of memory \(2\)"):
        gpu.add_vectors(gpu.Driver(cuda), 40, count=1000)
    assert (cuda.memory, cuda.retained) == ({}, 0)


def told(monkeypatch: pytest.MonkeyPatch, load: Any) -> int:
    monkeypatch.setattr(gpu, "load", load)
    monkeypatch.setattr(gpu, "COUNT", 1000)
    return gpu.main()


def test_exit_codes_tell_no_gpu_from_one_that_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("WHERRY_OUTPUTS", str(tmp_path))
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "GPU-1")

    def none() -> Any:
        raise gpu.NoGpuError("there is no NVIDIA driver here")

    assert told(monkeypatch, none) == 4
    assert told(monkeypatch, lambda: Cuda(gpus=-1)) == 4
    assert told(monkeypatch, lambda: Cuda(gpus=0)) == 4
    said = capsys.readouterr().err
    assert "no CUDA-capable device is detected (100)" in said
    assert [line.partition(":")[0] for line in said.splitlines()] == ["no GPU"] * 3
    assert told(monkeypatch, lambda: Cuda(wrong_at=0)) == 1
    assert not (tmp_path / "gpu.json").exists()
    assert told(monkeypatch, Cuda) == 0
    assert json.loads((tmp_path / "gpu.json").read_text())["gpus"][0]["name"] == "Stand-in 40"
    assert "NVIDIA_VISIBLE_DEVICES=GPU-1" in capsys.readouterr().out


def test_a_machine_without_the_drivers_library_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_LIBRARIES", ("libcuda-that-is-not-there.so.1",))
    with pytest.raises(gpu.NoGpuError, match="given no GPU"):
        gpu.load()
