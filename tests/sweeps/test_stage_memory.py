"""Attack stages within their share of a GPU, which is made up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces.errors import DoesNotFit, GpuMemoryExceeded
from sweeps.stage_job import judge_here, judge_shard
from tests.sweeps.stages import real_job, real_stage
from tests.trainables.gpus import GIB, SaidGpu
from trainables import assessment, gpu_guard
from trainables.gpu_peak import CONTEXT_BYTES


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SaidGpu:
    made = SaidGpu()
    monkeypatch.setattr(gpu_guard, "_here", lambda: made)
    return made


def test_every_shard_sets_the_share_of_its_job(trained: Any, tmp_path: Path, gpu: SaidGpu) -> None:
    judge_shard(real_job(trained, tmp_path, gpu_share=0.25), 0, 5)
    judge_shard(real_job(trained, tmp_path, gpu_share=0.5), 1, 5)
    beside = CONTEXT_BYTES / gpu.total
    assert gpu.limits == [pytest.approx(0.25 - beside), pytest.approx(0.5 - beside)]


def test_a_worker_above_its_share_stops_between_units_and_its_verdicts_stay(
    trained: Any, tmp_path: Path, gpu: SaidGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = replace(real_stage(), batch_size=5)
    whole = judge_here(real_job(trained, tmp_path / "whole", stage), 1.0)
    job = real_job(trained, tmp_path / "shared", stage, gpu_share=0.25)
    original = assessment.judge

    def grows(*arguments: Any, **options: Any) -> Any:
        gpu.of_process = 40 * GIB
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(assessment, "judge", grows)
        with pytest.raises(GpuMemoryExceeded, match=r"its share is 0\.25"):
            judge_shard(job, 0, 1)
    gpu.of_process = None
    again = judge_here(job, 1.0)
    assert 0 < again.judged < whole.judged
    assert again.record.survivors == whole.record.survivors


@pytest.mark.parametrize(("share", "error"), [(1.0, DoesNotFit), (0.5, torch.OutOfMemoryError)])
def test_an_attack_without_memory_says_what_would_help_if_it_had_the_whole_device(
    trained: Any, tmp_path: Path, gpu: SaidGpu, monkeypatch: pytest.MonkeyPatch, share: float, error: type[Exception]
) -> None:
    def full(*_arguments: Any, **_options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(assessment, "judge", full)
    with pytest.raises(error) as caught:
        judge_shard(real_job(trained, tmp_path, gpu_share=share), 0, 1)
    assert ("pgd with batches of 10 images does not fit: it had all of card 80 GB" in str(caught.value)) is (share == 1)
