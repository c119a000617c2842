"""Shows that this container sees its GPUs and computes on them: `python -m selftest.gpu`.

It talks to the NVIDIA driver itself (libcuda by ctypes), so it needs no CUDA toolkit: on each GPU it adds two vectors
by a kernel of its own, and compares every sum. What it finds is printed, and written to `gpu.json` among the outputs.

Exit codes: 0 every GPU computes; 1 one does not, or the driver reports an error; 4 there is no driver, or no GPU.
"""

import ctypes
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Dict, List  # noqa: UP035 - the Python of the base may be old

EXIT_FAILED, EXIT_NO_GPU = 1, 4
COUNT = 1 << 20
BLOCK = 256
_MAJOR, _MINOR = 75, 76  # attributes of a device: its compute capability
_LIBRARIES = ("libcuda.so.1", "libcuda.so")

#: c[i] = a[i] + b[i], in the driver's own assembly, which it translates for the GPU that is there.
KERNEL = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry add(.param .u64 pa, .param .u64 pb, .param .u64 pc, .param .u32 pn)
{
    .reg .pred %p<2>;
    .reg .f32 %f<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<11>;
    ld.param.u64 %rd1, [pa];
    ld.param.u64 %rd2, [pb];
    ld.param.u64 %rd3, [pc];
    ld.param.u32 %r1, [pn];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.u32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd4, %rd1;
    cvta.to.global.u64 %rd5, %rd2;
    cvta.to.global.u64 %rd6, %rd3;
    mul.wide.u32 %rd7, %r5, 4;
    add.s64 %rd8, %rd4, %rd7;
    add.s64 %rd9, %rd5, %rd7;
    add.s64 %rd10, %rd6, %rd7;
    ld.global.f32 %f1, [%rd8];
    ld.global.f32 %f2, [%rd9];
    add.f32 %f3, %f1, %f2;
    st.global.f32 [%rd10], %f3;
DONE:
    ret;
}
\0"""


class NoGpuError(Exception):
    """There is nothing to compute on; the message says why."""


class DriverError(Exception):
    """The driver refused a call."""


class Driver:
    """The few calls of the CUDA driver that are needed.

    Args:
        library: the driver's library, as ctypes loads it.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def call(self, name: str, *arguments: Any) -> None:
        """Call the function *name*.

        Raises:
            DriverError: it answers anything but success.
        """
        code = getattr(self._library, name)(*arguments)
        if code:
            said = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(said))
            raise DriverError(f"{name}: {(said.value or b'unknown error').decode()} ({code})")

    def number(self, name: str, *arguments: Any) -> int:
        """Return the int that the function *name* gives by its first argument."""
        found = ctypes.c_int()
        self.call(name, ctypes.byref(found), *arguments)
        return found.value


def load() -> Any:
    """Return the driver's library.

    Raises:
        NoGpuError: this container has none.
    """
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise NoGpuError("there is no NVIDIA driver here (libcuda.so.1): the container was given no GPU")


def devices(driver: Driver) -> List[int]:  # noqa: UP006
    """Return the handles of all GPUs that can be seen.

    Raises:
        NoGpuError: there are none.
        DriverError: the driver does not work.
    """
    try:
        driver.call("cuInit", 0)
    except DriverError as error:
        raise NoGpuError(f"the NVIDIA driver finds no GPU: {error}") from None
    count = driver.number("cuDeviceGetCount")
    if not count:
        raise NoGpuError("the NVIDIA driver finds no GPU")
    return [driver.number("cuDeviceGet", index) for index in range(count)]


def facts(driver: Driver, device: int) -> Dict[str, Any]:  # noqa: UP006
    """Return a GPU's name, memory in bytes, and compute capability."""
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    driver.call("cuDeviceGetName", name, len(name), device)
    driver.call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor = (driver.number("cuDeviceGetAttribute", what, device) for what in (_MAJOR, _MINOR))
    return {"name": name.value.decode(), "memory": memory.value, "compute_capability": f"{major}.{minor}"}


def add_vectors(driver: Driver, device: int, count: int) -> float:
    """Add two vectors of *count* numbers on a GPU, compare all sums, and return the seconds that it computed.

    Raises:
        DriverError: the driver refuses, or a sum is wrong.
    """
    context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        driver.call("cuCtxSetCurrent", context)
        driver.call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(KERNEL))
        driver.call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"add"))
        vector = ctypes.c_float * count
        left = vector(*(0.5 * index for index in range(count)))
        right = vector(*(count - 0.25 * index for index in range(count)))
        sums, seconds = _computed(driver, function, left, right, vector())
    finally:
        driver.call("cuDevicePrimaryCtxRelease_v2", device)
    wrong = sum(one != a + b for one, a, b in zip(sums, left, right))  # noqa: B905 - every sum fits a float exactly
    if wrong:
        raise DriverError(f"{wrong} of {count} sums are wrong")
    return seconds


def _computed(driver: Driver, function: Any, left: Any, right: Any, sums: Any) -> Any:
    size = ctypes.c_size_t(ctypes.sizeof(sums))
    held: List[ctypes.c_uint64] = []  # noqa: UP006
    try:
        for _ in range(3):
            place = ctypes.c_uint64()
            driver.call("cuMemAlloc_v2", ctypes.byref(place), size)
            held.append(place)
        driver.call("cuMemcpyHtoD_v2", held[0], left, size)
        driver.call("cuMemcpyHtoD_v2", held[1], right, size)
        given = [*held, ctypes.c_uint32(len(sums))]
        pointers = (ctypes.c_void_p * len(given))(*(ctypes.addressof(one) for one in given))
        blocks = (len(sums) + BLOCK - 1) // BLOCK
        begun = time.perf_counter()
        driver.call("cuLaunchKernel", function, blocks, 1, 1, BLOCK, 1, 1, 0, None, pointers, None)
        driver.call("cuCtxSynchronize")
        seconds = time.perf_counter() - begun
        driver.call("cuMemcpyDtoH_v2", sums, held[2], size)
    finally:
        for place in held:
            driver.call("cuMemFree_v2", place)
    return sums, seconds


def examine(driver: Driver) -> Dict[str, Any]:  # noqa: UP006
    """Return what is true of every GPU, after it has computed.

    Raises:
        NoGpuError: there is none.
        DriverError: one does not compute.
    """
    found = []
    handles = devices(driver)
    version = driver.number("cuDriverGetVersion")
    for index, device in enumerate(handles):
        one = facts(driver, device)
        one["seconds"] = add_vectors(driver, device, COUNT)
        found.append(one)
        print(f"::progress {(index + 1) / len(handles):.2f}::{one['name']} computes", flush=True)
    return {"driver": f"{version // 1000}.{version % 1000 // 10}", "gpus": found}


def main() -> int:
    """Examine, tell, and return the exit code."""
    print(f"NVIDIA_VISIBLE_DEVICES={os.environ.get('NVIDIA_VISIBLE_DEVICES', '')}", flush=True)
    try:
        found = examine(Driver(load()))
    except NoGpuError as error:
        print(f"no GPU: {error}", file=sys.stderr)
        return EXIT_NO_GPU
    except DriverError as error:
        print(f"the GPU does not compute: {error}", file=sys.stderr)
        return EXIT_FAILED
    for one in found["gpus"]:
        print(f"{one['name']}: {one['memory'] / 2**30:.1f} GiB, compute capability {one['compute_capability']}; "
              f"{COUNT} sums are right, in {one['seconds'] * 1e3:.2f} ms")  # fmt: skip
    if os.environ.get("WHERRY_OUTPUTS"):
        (Path(os.environ["WHERRY_OUTPUTS"]) / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
