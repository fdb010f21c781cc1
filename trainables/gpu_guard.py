"""The guard: a process that shares a GPU keeps to its share, so that its neighbours do not run out of memory by it.

Ray's shares are bookkeeping. Here the caching allocator is told its limit at the beginning of every job, and NVML is
asked between two epochs, or units of an attack, whether the process has stayed within its share with what CUDA takes
beside the allocator.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from cluster.resources import GB
from search_spaces.errors import DoesNotFit, GpuMemoryExceeded, SweepError, ran_out_of_memory
from trainables.gpu_memory import Gpu, find_gpu
from trainables.gpu_peak import CONTEXT_BYTES, whole_device_too_small

TOLERANCE = 0.05
"""Part of a share by which a process may exceed it by NVML (our choice: half of the margin that a measured share has,
for kernels that are loaded late)."""
TOLERANCE_BYTES = 256 * 2**20
"""At least so much may be exceeded (our choice): kernels do not get smaller with the share."""


@dataclass(frozen=True)
class Guard:
    """One job on one device, or on a CPU, where it does nothing."""

    share: float
    """Of the device's memory; 1 or more is all of it, 0 sets no limit."""
    gpu: Gpu | None

    def check(self) -> None:
        """Raise GpuMemoryExceeded if NVML says that this process has more of the device than its share."""
        if self.gpu is None or not 0 < self.share < 1:
            return
        taken = self.gpu.process()
        if taken is not None and taken > most_allowed(self.share, self.gpu.total):
            raise GpuMemoryExceeded(
                f"the process takes {taken / GB:.2f} GB of {self.gpu.kind}, and its share is {self.share:g}, which is "
                f"{self.share * self.gpu.total / GB:.2f} GB. It stops, so that its neighbours do not run out of "
                "memory; it needs a larger share."
            )

    @contextmanager
    def explaining(self, what: str, remedy: str) -> Iterator[None]:
        """Turn running out of memory into DoesNotFit, with the remedy, where the job had the whole device.

        Args: what, remedy: as in `whole_device_too_small`.
        """
        try:
            yield
        except (RuntimeError, SweepError) as error:  # torch.OutOfMemoryError is one, cuBLAS has its own words
            if self.gpu is None or self.share < 1 or not ran_out_of_memory(f"{type(error).__name__}: {error}"):
                raise
            raise DoesNotFit(whole_device_too_small(what, self.gpu.kind, self.gpu.total, remedy)) from error


def begin_job(share: float, gpu: Gpu | None = None) -> Guard:
    """Drop what the job before it left on the device, limit this one to its share, and return its guard.

    It is called before anything of a job is built, because an actor runs many jobs with different shares.

    Args:
        share: of the device's memory; 1 or more is all of it, 0 sets no limit.
        gpu: the device; None is the first one that this process sees, if there is any.

    Raises: GpuMemoryExceeded if the share is less than what CUDA takes for itself.
    """
    found = _here() if gpu is None else gpu
    if found is not None:
        found.forget()
        found.limit(allocator_fraction(share, found.total, _beside(found), found.kind))
    return Guard(share, found)


def allocator_fraction(share: float, total: int, beside: int, kind: str = "the device") -> float:
    """Return the part of a device, in (0, 1], that the allocator may hold: the share without CUDA's own. Pure.

    Args: total: bytes of the device; beside: bytes that the process takes of it beside the allocator.

    Raises: GpuMemoryExceeded if nothing is left.

    allocator_fraction(0.25, 80 * 2**30, 2**30)  # 0.2375
    """
    if share <= 0 or share >= 1:
        return 1.0
    room = share * total - beside
    if room <= 0:
        raise GpuMemoryExceeded(
            f"the share {share:g} of {kind} is {share * total / GB:.2f} GB, and CUDA alone takes {beside / GB:.2f} GB; "
            "a process needs a larger share."
        )
    return room / total


def most_allowed(share: float, total: int) -> float:
    """Return the bytes that a process may take by NVML: its share with what may be exceeded. Pure."""
    return share * total + max(TOLERANCE * share * total, TOLERANCE_BYTES)


def _here() -> Gpu | None:
    return find_gpu(torch.device("cuda", 0)) if torch.cuda.is_available() else None


def _beside(gpu: Gpu) -> int:
    """Return what the process takes beside the allocator: as NVML says, CONTEXT_BYTES at least, because kernels and
    workspaces come with their first use."""
    taken = gpu.process()
    return CONTEXT_BYTES if taken is None else max(taken - gpu.reserved(), CONTEXT_BYTES)
