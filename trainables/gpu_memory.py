"""What a process holds of a GPU: read from torch's allocator and from NVML, which sees CUDA's own share too."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch

from cluster.resources import GB
from trainables.gpu_peak import CONTEXT_BYTES, Peak

SAMPLE_S = 0.005
"""NVML is asked every so many seconds (our choice: an answer takes well below one millisecond)."""
FIRST_PID_NAMESPACE = 0xEFFFFFFC
"""Inode by which Linux names the machine's own process namespace (PROC_PID_INIT_INO)."""
LEAST_CONTEXT_BYTES = 64 * 2**20
"""No process takes less of a device beside the allocator (our choice; contexts have some hundreds of MiB)."""


class Gpu(Protocol):
    """One device as this process sees it: the seam between what is decided here and CUDA. Tests give their own."""

    @property
    def kind(self) -> str:
        """As `cluster.packing.Device.kind`."""
        ...

    @property
    def total(self) -> int:
        """Bytes of the device."""
        ...

    def allocated_peak(self) -> int:
        """Most bytes of living tensors since `forget`."""
        ...

    def reserved(self) -> int:
        """Bytes that the allocator holds now."""
        ...

    def reserved_peak(self) -> int:
        """Most bytes that the allocator held since `forget`."""
        ...

    def process(self) -> int | None:
        """Bytes of this process now by NVML; None where it does not say."""
        ...

    def used(self) -> int | None:
        """Bytes of the device that are taken now, by whomever; None where NVML does not say."""
        ...

    def forget(self) -> None:
        """Give back what nothing uses any more, and begin new peaks."""
        ...

    def limit(self, fraction: float) -> None:
        """Let the allocator hold this part of the device, in [0, 1]; what it asks for beyond is out of memory."""
        ...


class CudaGpu:
    """A CUDA device."""

    def __init__(self, device: torch.device) -> None:
        """Args: device: of type cuda; without an index the current one."""
        from cluster.connect import this_machine

        index = torch.cuda.current_device() if device.index is None else device.index
        found = this_machine().devices[index]
        assert found.memory_bytes is not None
        self.kind, self.total = found.kind, found.memory_bytes
        self._device = torch.device("cuda", index)
        self._nvml = _Nvml.of(str(torch.cuda.get_device_properties(index).uuid))

    def allocated_peak(self) -> int:
        return torch.cuda.max_memory_allocated(self._device)

    def reserved(self) -> int:
        return torch.cuda.memory_reserved(self._device)

    def reserved_peak(self) -> int:
        return torch.cuda.max_memory_reserved(self._device)

    def process(self) -> int | None:
        return None if self._nvml is None else self._nvml.process(os.getpid())

    def used(self) -> int | None:
        return None if self._nvml is None else self._nvml.used()

    def forget(self) -> None:
        gc.collect()  # tensors in cycles: exceptions and their frames, modules and their hooks
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def limit(self, fraction: float) -> None:
        torch.cuda.set_per_process_memory_fraction(fraction, self._device)


@lru_cache(maxsize=16)
def find_gpu(device: torch.device) -> Gpu | None:
    """Return the GPU of that name; None for a CPU. NVML is opened once for each."""
    return CudaGpu(device) if device.type == "cuda" else None


def memory_metrics(device: torch.device, gpu: Gpu | None = None) -> dict[str, float]:
    """Return ``cost/gpu_memory_gb``: the most that this process has taken, as far as that is known; {} on a CPU.

    Args: gpu: the device, if it is known.
    """
    found = gpu or find_gpu(device)
    if found is None:
        return {}
    now, held = found.process(), found.reserved_peak()
    return {"cost/gpu_memory_gb": (held + CONTEXT_BYTES if now is None else max(now, held)) / GB}


class Meter:
    """Watches the peaks of one device. The caching allocator counts itself; NVML is sampled by a thread."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._process: int | None = None
        self._used: int | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch what the block takes; `peak` tells it, also after an exception.

        This process should be alone on the device: where NVML knows no processes, as in most containers, what came onto
        the device during the block is taken for this process's.
        """
        self.gpu.forget()
        self._process, self._used = None, None
        self._began, before = time.monotonic(), self.gpu.used()
        over = threading.Event()
        thread = threading.Thread(target=self._sample, args=(over,), name="gpu memory", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            self._look()
            self._seconds = time.monotonic() - self._began
            came = None if before is None or self._used is None else self._used - before
            self._seen = self._believable(self._process if self._process is not None else came)

    def peak(self) -> Peak:
        """Return the peaks of the block that was watched."""
        gpu = self.gpu
        return Peak(gpu.allocated_peak(), gpu.reserved_peak(), self._seen, gpu.total, gpu.kind, self._seconds)

    def _sample(self, over: threading.Event) -> None:
        while not over.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        process, used = self.gpu.process(), self.gpu.used()
        self._process = max((value for value in (self._process, process) if value is not None), default=None)
        self._used = max((value for value in (self._used, used) if value is not None), default=None)

    def _believable(self, seen: int | None) -> int | None:
        """Return what NVML saw, unless CUDA's own part is missing in it, because it was there before the block."""
        least = self.gpu.reserved_peak() + LEAST_CONTEXT_BYTES
        return seen if seen is not None and seen >= least else None


class _Nvml:
    """NVML's view of one device, None wherever it has none."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def of(cls, uuid: str) -> _Nvml | None:
        """Return the device of that UUID; None without NVML. Indices differ where CUDA_VISIBLE_DEVICES is set."""
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError:
            return None
        for prefix in ("GPU-", "MIG-"):
            try:
                return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid if "-" in uuid[:4] else f"{prefix}{uuid}"))
            except pynvml.NVMLError:
                continue
        return None

    def process(self, pid: int) -> int | None:
        """Return the bytes of a process, as it is or as a client of MPS; None in a container.

        NVML has the machine's numbers of processes, and a number in a container may be another process's there.
        """
        if not sees_machine_pids():
            return None
        nvml = self._nvml
        for ask in (nvml.nvmlDeviceGetComputeRunningProcesses, nvml.nvmlDeviceGetMPSComputeRunningProcesses):
            try:
                found = [one.usedGpuMemory for one in ask(self._handle) if one.pid == pid]
            except nvml.NVMLError:
                continue
            if found and found[0] is not None:
                return int(found[0])
        return None

    def used(self) -> int | None:
        """Return the bytes of the device that are taken."""
        try:
            return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)
        except self._nvml.NVMLError:
            return None


def sees_machine_pids(namespace: Path = Path("/proc/self/ns/pid")) -> bool:
    """Return whether this process has the number by which the machine knows it, which it has not in a container."""
    try:
        return namespace.stat().st_ino == FIRST_PID_NAMESPACE
    except OSError:
        return False
