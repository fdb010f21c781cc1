"""What a process holds of a GPU, and what it needs therefore; devices and NVML are made up."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainables.gpus import GIB, SaidGpu
from trainables import gpu_memory
from trainables.gpu_guard import begin_job
from trainables.gpu_memory import Meter, find_gpu, memory_metrics, sees_machine_pids
from trainables.gpu_peak import (
    CONTEXT_BYTES,
    LEAST_MARGIN_BYTES,
    Peak,
    attack_remedy,
    needed_bytes,
    training_remedy,
    whole_device_too_small,
)

SIZES = st.integers(0, 200 * GIB)


def watched(gpu, act):
    meter = Meter(gpu)
    with meter.watching():
        act()
    return meter.peak()


def test_the_meter_keeps_the_most_that_nvml_has_said_of_the_process():
    gpu = SaidGpu(held_peak=2 * GIB)

    def act():
        gpu.of_process = 5 * GIB
        while peak._process != 5 * GIB:
            pass
        gpu.of_process = 3 * GIB

    peak = Meter(gpu)
    with peak.watching():
        act()
    assert peak.peak().process == 5 * GIB
    assert gpu.forgotten == 1


def test_without_processes_what_came_onto_the_device_is_the_process():
    gpu = SaidGpu(held_peak=2 * GIB, of_device=1 * GIB)

    def act():
        gpu.of_device = 4 * GIB

    assert watched(gpu, act).process == 3 * GIB


def test_less_than_the_allocator_held_is_not_believed():
    """A context that was there before the block is missing in what came during it."""
    gpu = SaidGpu(held_peak=2 * GIB, of_device=1 * GIB)

    def act():
        gpu.of_device = 3 * GIB

    peak = watched(gpu, act)
    assert peak.process is None
    assert needed_bytes(peak) == int(1.1 * (2 * GIB + CONTEXT_BYTES))


def test_without_nvml_the_allocator_is_what_is_known():
    peak = watched(SaidGpu(allocated=GIB, held_peak=2 * GIB), lambda: None)
    assert (peak.allocated, peak.reserved, peak.process) == (GIB, 2 * GIB, None)


def test_the_peak_is_known_after_an_exception_too():
    meter = Meter(SaidGpu(held_peak=GIB))
    with pytest.raises(RuntimeError), meter.watching():
        raise RuntimeError
    assert meter.peak().reserved == GIB


@given(reserved=SIZES, process=st.none() | SIZES, total=st.integers(GIB, 200 * GIB))
def test_what_is_needed_is_more_than_was_seen_and_no_more_than_there_is(reserved, process, total):
    needed = needed_bytes(Peak(0, reserved, process, total, "card", 1.0))
    seen = max(reserved, process or 0)
    assert needed == total or needed >= seen + max(LEAST_MARGIN_BYTES, int(0.1 * seen))
    assert needed <= total


@given(reserved=SIZES, more=SIZES)
def test_who_held_more_needs_no_less(reserved, more):
    peaks = (Peak(0, size, None, 500 * GIB, "card", 1.0) for size in (reserved, reserved + more))
    assert sorted(found := [needed_bytes(peak) for peak in peaks]) == found


def test_a_remedy_names_what_is_set_and_what_would_help():
    assert training_remedy(128, None).startswith(
        "Lower training.batch_size, now 128, or set training.micro_batch to 64"
    )
    assert training_remedy(128, 32) == "Lower training.micro_batch, now 32."
    assert "smaller model" in training_remedy(128, 1)
    assert "smaller model" in training_remedy(1, None)
    assert attack_remedy(256) == "Lower attacks.batch_size, now 256."
    assert attack_remedy(1) == "Take a smaller model."
    assert (
        whole_device_too_small("it", "card", 22 * GIB, "Less.")
        == "it does not fit: it had all of card (22.0 GB). Less."
    )


def test_the_metric_of_an_epoch_is_the_process_or_what_is_known_of_it():
    known = SaidGpu(of_process=3 * GIB, held_peak=GIB)
    unknown = SaidGpu(held_peak=GIB)
    cuda = torch.device("cuda")
    assert memory_metrics(cuda, known) == {"cost/gpu_memory_gb": 3.0}
    assert memory_metrics(cuda, unknown) == {"cost/gpu_memory_gb": 1 + CONTEXT_BYTES / GIB}
    assert memory_metrics(torch.device("cpu")) == {}
    assert find_gpu(torch.device("cpu")) is None


class Refused(Exception):
    """NVML's error."""


def nvml(monkeypatch, **functions):
    """Put a made-up pynvml in place: a process list for the device with UUID GPU-1f, and what `functions` replaces."""

    def handle(uuid):
        if uuid != "GPU-1f":
            raise Refused
        return uuid

    mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=3 * GIB)
    made = {
        "NVMLError": Refused,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": handle,
        "nvmlDeviceGetComputeRunningProcesses": lambda _: [SimpleNamespace(pid=1, usedGpuMemory=9 * GIB), mine],
        "nvmlDeviceGetMPSComputeRunningProcesses": lambda _: [],
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(used=12 * GIB),
    }
    monkeypatch.setitem(sys.modules, "pynvml", SimpleNamespace(**{**made, **functions}))
    monkeypatch.setattr(gpu_memory, "sees_machine_pids", lambda: True)


def refuse(*_):
    raise Refused


def test_nvml_knows_the_device_by_its_uuid_and_the_process_by_its_number(monkeypatch):
    nvml(monkeypatch)
    device = gpu_memory._Nvml.of("1f")
    assert device.process(os.getpid()) == 3 * GIB
    assert device.process(2) is None
    assert device.used() == 12 * GIB
    assert gpu_memory._Nvml.of("2e") is None


def test_a_client_of_mps_is_found_among_its_processes(monkeypatch):
    mine = SimpleNamespace(pid=os.getpid(), usedGpuMemory=2 * GIB)
    nvml(
        monkeypatch,
        nvmlDeviceGetComputeRunningProcesses=lambda _: [],
        nvmlDeviceGetMPSComputeRunningProcesses=lambda _: [mine],
    )
    assert gpu_memory._Nvml.of("1f").process(os.getpid()) == 2 * GIB


def test_in_a_container_the_number_of_the_process_means_nothing(monkeypatch):
    nvml(monkeypatch)
    monkeypatch.setattr(gpu_memory, "sees_machine_pids", lambda: False)
    assert gpu_memory._Nvml.of("1f").process(os.getpid()) is None


@pytest.mark.parametrize("missing", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_nvml_that_refuses_is_no_error(monkeypatch, missing):
    nvml(monkeypatch, **{missing: refuse})
    assert gpu_memory._Nvml.of("1f") is None


def test_nvml_that_says_nothing_of_processes_or_memory_is_no_error(monkeypatch):
    unknown = SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)
    nvml(
        monkeypatch,
        nvmlDeviceGetComputeRunningProcesses=lambda _: [unknown],
        nvmlDeviceGetMPSComputeRunningProcesses=refuse,
        nvmlDeviceGetMemoryInfo=refuse,
    )
    device = gpu_memory._Nvml.of("1f")
    assert device.process(os.getpid()) is None
    assert device.used() is None


def test_nvml_that_is_not_installed_is_no_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_memory._Nvml.of("1f") is None


def test_a_process_namespace_of_its_own_is_noticed(tmp_path):
    (tmp_path / "pid").touch()
    assert not sees_machine_pids(tmp_path / "pid")
    assert not sees_machine_pids(tmp_path / "none")


def test_a_cuda_device_is_asked_of_torch_and_of_nvml_by_its_uuid(monkeypatch):
    """The second device that this process sees; the machine may number it otherwise."""
    nvml(monkeypatch)
    limits: list[tuple[float, torch.device]] = []
    forgotten: list[object] = []
    made = {
        "device_count": lambda: 2,
        "get_device_properties": lambda index: SimpleNamespace(total_memory=(24 + 56 * index) * GIB, uuid=f"{index}f"),
        "get_device_name": lambda index: f"card {index}",
        "max_memory_allocated": lambda device: device.index * GIB,
        "memory_reserved": lambda device: 2 * device.index * GIB,
        "max_memory_reserved": lambda device: 3 * device.index * GIB,
        "empty_cache": lambda: forgotten.append("cache"),
        "reset_peak_memory_stats": forgotten.append,
        "set_per_process_memory_fraction": lambda fraction, device: limits.append((fraction, device)),
    }
    for name, function in made.items():
        monkeypatch.setattr(torch.cuda, name, function)
    device = torch.device("cuda", 1)
    gpu = gpu_memory.CudaGpu(device)
    assert (gpu.kind, gpu.total) == ("card 1 80 GB", 80 * GIB)  # as the packing names it
    assert (gpu.allocated_peak(), gpu.reserved(), gpu.reserved_peak()) == (GIB, 2 * GIB, 3 * GIB)
    assert (gpu.process(), gpu.used()) == (3 * GIB, 12 * GIB)
    begin_job(0.5, gpu)
    assert forgotten == ["cache", device]
    assert limits == [(pytest.approx(0.5 - 1 / 80), device)]
