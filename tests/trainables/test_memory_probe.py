"""The probe's peaks beside those of the whole work, counted in bytes of living tensors."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from search_spaces.errors import AttackError, DoesNotFit
from sweeps.records import PlannedStage
from tests.trainables.gpus import CountingGpu, SaidGpu
from trainables.attack import Threat, find_attack
from trainables.config import attack_config_type
from trainables.dataset import InMemory
from trainables.gpu_memory import Meter
from trainables.learner import Learner
from trainables.memory_probe import Peak, measure_attack, measure_training
from trainables.methods.plain import Plain
from trainables.monitor import Monitor
from trainables.randomness import Randomness
from trainables.registry import names
from trainables.trial import find_splits, load_final
from trainables.verdicts import judge

CPU = torch.device("cpu")
SECTIONS = {
    "robustness_tokens": {"measured_images": 8, "steps": 3},
    "safer": {"score_batches": 2, "steps": 3},
    "adversarial": {"steps": 3, "epsilon_warmup_epochs": 1},
    "trades": {"steps": 3, "epsilon_warmup_epochs": 1},
}
ATTACKS = ("pgd", "apgd_ce", "apgd_t", "fab_t", "fgsm", "square")


@pytest.fixture(scope="module", autouse=True)
def _warm(tiny_trial):
    """Train once, uncounted: what torch keeps from its first use on belongs to no test."""
    whole_training(tiny_trial(training={"epochs": 1}))


def whole_training(config):
    """Return the most bytes of tensors while a learner learns to the end, as a trial does."""
    with CountingGpu() as gpu, Randomness(0).active():
        splits = find_splits(config)
        learner = Learner(config, 0, splits, CPU)
        monitor = Monitor(config.monitor, splits, config.training.batch_size, CPU) if config.monitor.images else None
        for epoch in range(config.training.epochs):
            learner.train_epoch(epoch)
            learner.accuracy_and_loss(learner.splits.validation)
            learner.measure()
            if monitor is not None:
                monitor.measure(learner.kept_model)
        return gpu.allocated_peak()


def probed(config, **options):
    with CountingGpu() as gpu:
        return measure_training(config, device=CPU, meter=Meter(gpu), **options)


def stage(attack, *, images=40, batch_size=8, config=None, **options):
    threat = {"norm": "linf", "epsilon": 8 / 255}
    return PlannedStage(
        "validation",
        0,
        "launched",
        attack,
        attack,
        attack,
        config or {},
        threat,
        True,
        images,
        batch_size,
        0,
        **options,
    )


@pytest.mark.parametrize("method", names("methods"))
def test_a_training_takes_what_its_probe_took(tiny_trial, method):
    """Two steps show the peak of all: the optimizer's state, warm-ups that are over, what methods hold and measure."""
    config = tiny_trial({method: SECTIONS.get(method, {})}, training={"batch_size": 32, "epochs": 2})
    whole = whole_training(config)
    assert probed(config).allocated == pytest.approx(whole, rel=0.02)


def test_smaller_passes_and_a_moving_average_are_part_of_the_probe(tiny_trial):
    recipe = {"batch_size": 48, "micro_batch": 8, "optimizer": "sgd", "ema_decay": 0.9}
    config = tiny_trial({"trades": {"steps": 1}}, training=recipe)
    whole = whole_training(config)
    assert probed(config).allocated == pytest.approx(whole, rel=0.02)


def test_the_attack_of_a_monitor_is_part_of_the_peak(tiny_trial):
    plain = tiny_trial(data={"validation_images": 96}, training={"batch_size": 96, "micro_batch": 2})
    monitor = plain.monitor.model_validate({"images": 96, "norm": "linf", "epsilon": 0.03, "steps": 3})
    watched = plain.model_copy(update={"monitor": monitor})
    assert probed(watched).allocated > 1.05 * probed(plain).allocated
    assert probed(watched).allocated == pytest.approx(whole_training(watched), rel=0.02)


def test_a_training_that_starts_from_a_parent_is_measured_before_there_is_one(tiny_trial):
    plain = tiny_trial()
    child = plain.model_validate({**plain.plain(), "start_from": {"name": "robust", "identity": "0" * 64}})
    assert probed(child).allocated == pytest.approx(probed(plain).allocated, rel=0.001)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_takes_no_more_than_its_probe_took(tiny_trial, trained, attack):
    """The probe's model lets no image fall; of a trained one's some leave."""
    settings = {"steps": 6} if attack not in ("fgsm", "square") else {"queries": 8} if attack == "square" else {}
    wanted = stage(attack, config=settings)
    model, splits, meta = load_final(trained.folder, device=CPU)
    config = tiny_trial().model_validate(meta["config"])
    with CountingGpu() as gpu:
        probe = measure_attack(config, wanted, device=CPU, meter=Meter(gpu)).allocated
    ids = torch.arange(4 * wanted.batch_size)
    pixels = splits.validation.take(ids)
    labels = model(pixels).argmax(1)
    attacks = find_attack(attack, attack_config_type(attack)(**settings), Threat(**wanted.threat))
    with CountingGpu() as gpu:
        held, _, _ = load_final(trained.folder, device=CPU)
        gpu.forget()
        judge(held, attacks, InMemory(pixels, labels), ids, seed=0, batch_size=8, device=CPU)
        whole = gpu.allocated_peak()
    assert 0.95 * whole < probe < 1.5 * whole


def test_an_attack_on_more_images_at_once_takes_more(tiny_trial):
    found = []
    for size in (4, 40):
        with CountingGpu() as gpu:
            wanted = stage("apgd_ce", batch_size=size)
            found.append(measure_attack(tiny_trial(), wanted, device=CPU, meter=Meter(gpu)).allocated)
    assert found[1] > 1.5 * found[0]


def test_appended_tokens_are_there_while_an_attack_is_measured(tiny_trial):
    found = []
    for count in (0, 40):
        config = tiny_trial({"robustness_tokens": {"count": count, "head": "fitted"}})
        with CountingGpu() as gpu:
            wanted = stage("pgd", surrogate=None)
            found.append(measure_attack(config, wanted, device=CPU, meter=Meter(gpu)).allocated)
    assert found[1] > 1.3 * found[0]


def test_a_surrogate_is_attacked_in_place_of_the_model(tiny_trial):
    config = tiny_trial({"robustness_tokens": {"count": 40, "head": "fitted"}})
    found = {}
    for surrogate in (None, "backbone"):
        with CountingGpu() as gpu:
            wanted = stage("pgd", batch_size=16, surrogate=surrogate)
            found[surrogate] = measure_attack(config, wanted, device=CPU, meter=Meter(gpu)).allocated
    assert found["backbone"] < found[None]


def test_the_probe_leaves_the_global_random_numbers_as_they_were(tiny_trial):
    before = torch.get_rng_state()
    probed(tiny_trial({"adversarial": {"steps": 1}}), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_training_that_is_too_large_for_the_whole_device_says_what_helps(tiny_trial, monkeypatch):
    def full(self, model, seen, clean):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Plain, "loss", full)
    config = tiny_trial({"plain": {}}, training={"batch_size": 64})
    with pytest.raises(DoesNotFit) as caught:
        measure_training(config, device=CPU, meter=Meter(SaidGpu()))
    said = str(caught.value)
    assert "batches of 64 images" in said
    assert "it had all of card 80 GB (80.0 GB)" in said
    assert "training.batch_size, now 64" in said
    assert "training.micro_batch to 32" in said


def test_an_attack_that_is_too_large_for_the_whole_device_says_what_helps(tiny_trial, monkeypatch):
    def full(*_args, **_options):
        raise AttackError("pgd ran out of memory with batch_size 8 on cuda")

    monkeypatch.setattr("trainables.memory_probe.judge", full)
    with pytest.raises(
        DoesNotFit, match=r"pgd with batches of 8 images does not fit.*Lower attacks\.batch_size, now 8"
    ):
        measure_attack(tiny_trial(), stage("pgd"), device=CPU, meter=Meter(SaidGpu()))


def test_other_errors_of_an_attack_stay_what_they_are(tiny_trial, monkeypatch):
    def broken(*_args, **_options):
        raise AttackError("pgd left the ε-ball")

    monkeypatch.setattr("trainables.memory_probe.judge", broken)
    with pytest.raises(AttackError, match="left the ε-ball"):
        measure_attack(tiny_trial(), stage("pgd"), device=CPU, meter=Meter(SaidGpu()))


def test_a_cpu_without_a_meter_is_refused(tiny_trial):
    with pytest.raises(ValueError, match="the memory of a cpu is not measured"):
        measure_training(tiny_trial(), device=CPU)


def test_a_peak_travels_as_json(tiny_trial):
    peak = probed(tiny_trial())
    assert Peak(**json.loads(json.dumps(asdict(peak)))) == peak
    assert (peak.device_kind, peak.process) == ("the CPU", None)
    assert peak.seconds > 0
