"""The guard: what a job may take of a device, on devices that are made up, and on the CPU, where it does nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.errors import AttackError, DataError, DoesNotFit, GpuMemoryExceeded
from tests.trainables.gpus import GIB, SaidGpu
from trainables import gpu_guard
from trainables.gpu_guard import allocator_fraction, begin_job, most_allowed
from trainables.gpu_peak import CONTEXT_BYTES
from trainables.tune import Report, TrainingJob, TrialTrainable, failure_kind, write_token

SHARES = st.floats(0.001, 0.999)


@given(share=SHARES, total=st.integers(GIB, 200 * GIB), beside=st.integers(0, 2 * GIB))
def test_the_allocator_and_what_is_beside_it_make_the_share(share, total, beside):
    try:
        fraction = allocator_fraction(share, total, beside)
    except GpuMemoryExceeded:
        assert share * total <= beside
        return
    assert 0 < fraction < 1
    assert fraction * total + beside == pytest.approx(share * total)


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0])
def test_no_share_and_whole_devices_set_no_limit(share):
    assert allocator_fraction(share, 80 * GIB, GIB) == 1.0


def test_a_share_that_cuda_alone_fills_says_so():
    with pytest.raises(GpuMemoryExceeded, match=r"share 0\.01 of card is 0\.24 GB, and CUDA alone takes 0\.59 GB"):
        allocator_fraction(0.01, 24 * GIB, CONTEXT_BYTES, "card")


def test_every_job_gets_its_own_limit_and_an_empty_device():
    gpu = SaidGpu()
    for share in (0.5, 0.25, 1.0, 0.0):
        begin_job(share, gpu)
    room = CONTEXT_BYTES / gpu.total
    assert gpu.limits == [pytest.approx(0.5 - room), pytest.approx(0.25 - room), 1.0, 1.0]
    assert gpu.forgotten == 4


def test_what_nvml_sees_beside_the_allocator_counts_against_the_share():
    gpu = SaidGpu(held=2 * GIB, of_process=4 * GIB)
    begin_job(0.5, gpu)
    assert gpu.limits == [pytest.approx(0.5 - 2 / 80)]


def test_kernels_that_are_not_loaded_yet_have_their_room_beside_the_allocator():
    gpu = SaidGpu(held=2 * GIB, of_process=2 * GIB + 2**20)
    begin_job(0.5, gpu)
    assert gpu.limits == [pytest.approx(0.5 - CONTEXT_BYTES / gpu.total)]


def test_a_process_within_its_share_or_a_little_above_goes_on():
    gpu = SaidGpu()
    guard = begin_job(0.25, gpu)
    gpu.of_process = 20 * GIB
    guard.check()
    gpu.of_process = int(most_allowed(0.25, gpu.total))
    guard.check()


def test_a_process_that_takes_more_than_its_share_is_stopped_for_its_neighbours():
    gpu = SaidGpu()
    guard = begin_job(0.25, gpu)
    gpu.of_process = 30 * GIB
    with pytest.raises(GpuMemoryExceeded) as caught:
        guard.check()
    assert "takes 30.00 GB of card 80 GB, and its share is 0.25, which is 20.00 GB" in str(caught.value)
    assert failure_kind(caught.value) == "memory"


@pytest.mark.parametrize(("share", "taken"), [(0.0, 79 * GIB), (1.0, 80 * GIB), (0.25, None)])
def test_without_a_limit_or_without_nvml_nothing_is_stopped(share, taken):
    gpu = SaidGpu(of_process=taken)
    begin_job(share, gpu).check()
    assert len(gpu.limits) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        AttackError("pgd ran out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_job_with_the_whole_device_says_what_would_help(error):
    guard = begin_job(1.0, SaidGpu())
    with pytest.raises(DoesNotFit) as caught, guard.explaining("pgd", "Less."):
        raise error
    assert str(caught.value) == "pgd does not fit: it had all of card 80 GB (80.0 GB). Less."
    assert caught.value.__cause__ is error
    assert failure_kind(caught.value) == "memory"


@pytest.mark.parametrize(
    ("share", "error"),
    [
        (0.5, torch.OutOfMemoryError("CUDA out of memory")),
        (1.0, DataError("no images")),
        (1.0, RuntimeError("shape mismatch")),
    ],
)
def test_other_errors_and_those_of_a_share_stay_what_they_are(share, error):
    guard = begin_job(share, SaidGpu())
    with pytest.raises(type(error)) as caught, guard.explaining("pgd", "Less."):
        raise error
    assert caught.value is error


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_on_a_cpu_the_guard_does_nothing():
    guard = begin_job(0.25)
    guard.check()
    assert guard.gpu is None
    with pytest.raises(torch.OutOfMemoryError), guard.explaining("pgd", "Less."):
        raise torch.OutOfMemoryError


def actor(job):
    made = object.__new__(TrialTrainable)  # Tune's constructor wants a running Ray
    made.setup(job.tune_config())
    return made


def job(config, folder, number, share):
    write_token(folder, "mine/1")
    return TrainingJob(number, config.plain(), 0, str(folder), "mine/1", gpu_share=share)


def test_a_reused_actor_has_the_share_of_each_of_its_jobs_before_anything_is_built(tiny_trial, tmp_path, monkeypatch):
    gpu = SaidGpu()
    monkeypatch.setattr(gpu_guard, "_here", lambda: gpu)
    config = tiny_trial(training={"epochs": 1})
    worker = actor(job(config, tmp_path / "1", 1, 0.5))
    assert gpu.limits == []  # an actor may be set up for a trial that is over
    assert Report.read(worker.step()).status == "trained"
    worker.reset_config(job(config, tmp_path / "2", 2, 0.25).tune_config())
    assert len(gpu.limits) == 1
    assert Report.read(worker.step()).status == "trained"
    assert gpu.limits == [pytest.approx(share - CONTEXT_BYTES / gpu.total) for share in (0.5, 0.25)]


def test_a_training_above_its_share_fails_by_memory_and_leaves_its_checkpoint(tiny_trial, tmp_path, monkeypatch):
    gpu = SaidGpu()
    monkeypatch.setattr(gpu_guard, "_here", lambda: gpu)
    config = tiny_trial(training={"epochs": 2})
    worker = actor(job(config, tmp_path, 1, 0.1))
    monkeypatch.setattr(gpu, "limit", lambda _: setattr(gpu, "of_process", 9 * GIB))  # it grows when it has begun
    report = Report.read(worker.step())
    assert (report.status, report.kind, len(report.history)) == ("failed", "memory", 1)
    assert "its share is 0.1" in report.error
    gpu.of_process = None
    monkeypatch.undo()
    monkeypatch.setattr(gpu_guard, "_here", lambda: gpu)
    again = actor(job(config, tmp_path, 1, 0.2))
    assert Report.read(again.step()).status == "trained"  # the second epoch alone
    assert "continues after epoch 1" in (tmp_path / "log.txt").read_text()


def test_a_training_that_fills_a_whole_device_says_what_would_help(tiny_trial, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_guard, "_here", SaidGpu)

    def full(_self):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(TrialTrainable, "_build", full)
    report = Report.read(actor(job(tiny_trial(training={"batch_size": 64}), tmp_path, 1, 1.0)).step())
    assert (report.status, report.kind) == ("failed", "memory")
    assert "a training with batches of 64 images does not fit: it had all of card 80 GB" in report.error
    assert "set training.micro_batch to 32" in report.error
