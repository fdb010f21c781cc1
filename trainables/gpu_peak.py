"""What a process took of a GPU at most, what it needs therefore, and what is said where it does not fit. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.resources import GB

CONTEXT_BYTES = 600 * 2**20
"""What CUDA takes for a process beside torch's allocator, where it cannot be read: the context, the kernels of torch
and cuBLAS, and pools (our choice: some 0.5 GB on data-centre cards; most of it comes with the first kernels)."""
MARGIN = 0.10
"""Share of a peak that is added to it (our choice): between measurement and sweep the same work differs by blocks that
the allocator cannot join, by workspaces that cuBLAS and cuDNN choose as they find room, and by kernels loaded late."""
LEAST_MARGIN_BYTES = 256 * 2**20
"""Added at least (our choice): workspaces and kernels do not shrink with the model."""


@dataclass(frozen=True)
class Peak:
    """The most that a process held of a device while it was watched; ``dataclasses.asdict`` gives JSON's types."""

    allocated: int
    """Bytes of living tensors."""
    reserved: int
    """Bytes that torch's allocator held, living tensors and gaps between them."""
    process: int | None
    """Bytes of the whole process by NVML, CUDA's own included; None where NVML does not say."""
    device_total: int
    """Bytes of the device."""
    device_kind: str
    """As `cluster.packing.Device.kind`."""
    seconds: float
    """How long it was watched."""


def needed_bytes(peak: Peak) -> int:
    """Return what one such process needs of a device, the margin included; no more than the device has.

    The larger of what NVML saw and of what the allocator held beside CUDA's own `CONTEXT_BYTES`, plus a tenth, 256 MiB
    at least. What just fits on the device needs all of it: that it fits was seen.

    needed_bytes(Peak(3 * 2**30, 4 * 2**30, None, 80 * 2**30, "A 80 GB", 1.0)) / 2**30  # 5.04
    """
    held = peak.reserved + CONTEXT_BYTES if peak.process is None else max(peak.process, peak.reserved)
    return min(int(held + max(MARGIN * held, LEAST_MARGIN_BYTES)), peak.device_total)


def training_remedy(batch_size: int, micro_batch: int | None) -> str:
    """Return what helps a training that does not fit: its memory grows with the images of one pass."""
    at_once = min(micro_batch or batch_size, batch_size)
    if at_once == 1:
        return "A single image is too much: take a smaller model, or smaller images."
    if micro_batch is not None:
        return f"Lower training.micro_batch, now {micro_batch}."
    return (
        f"Lower training.batch_size, now {batch_size}, or set training.micro_batch to {at_once // 2}, which "
        "accumulates the gradients of smaller passes."
    )


def attack_remedy(batch_size: int) -> str:
    """Return what helps an attack that does not fit."""
    return f"Lower attacks.batch_size, now {batch_size}." if batch_size > 1 else "Take a smaller model."


def whole_device_too_small(what: str, device_kind: str, device_total: int, remedy: str) -> str:
    """Return the sentence for what ran out of memory though it had all of a device.

    whole_device_too_small("a training step", "NVIDIA L4 22 GB", 22 * 2**30, "Lower training.batch_size, now 512.")
    # "a training step does not fit: it had all of NVIDIA L4 22 GB (22.0 GB). Lower training.batch_size, now 512."
    """
    return f"{what} does not fit: it had all of {device_kind} ({device_total / GB:.1f} GB). {remedy}"
