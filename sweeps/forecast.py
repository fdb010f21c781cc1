"""The figures of a sweep before anything starts: sizes, steps, attack passes, bytes. All costs are estimates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from search_spaces.domains import thin
from search_spaces.errors import ConfigError
from sweeps.attack_plan import planned_stages
from sweeps.config import SweepConfig
from sweeps.disk import TrialBytes
from sweeps.prefetch import check_fit, to_fetch
from sweeps.records import PlannedStage, Split
from sweeps.rules import MAX_MODELS, data_problems
from trainables.attack import Threat
from trainables.attacks.pgd import Pgd
from trainables.checkpoint import KEPT
from trainables.config import ModelConfig, MonitorConfig, TrainingConfig
from trainables.dataset import Splits, outline_splits
from trainables.monitor import pgd_of
from trainables.recipe import steps_per_epoch
from trainables.verdicts import PACKED_BATCHES
from trainables.vit import build_model, model_facts

BYTES_PER_WEIGHT = 4
OPTIMIZER_COPIES = {"adamw": 2, "sgd": 1}
"""Tensors that an optimizer keeps for each weight."""
VERDICT_BYTES, UNIT_BYTES = 41, 2_500
"""Of the verdict on one image, its facts included, and of the file around those of a unit."""
TRIAL_BYTES, EPOCH_BYTES = 60_000, 4_000
"""Of a trial and of an epoch in ledger, logs and MLflow together, roughly."""
SLACK = 1.1
"""What methods keep beside the weights, buffers and the description of a checkpoint come to at most (our choice)."""


@dataclass(frozen=True)
class Range:
    """What a searched figure can come to: lowest and highest."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> Range:
        """Return the range that the values span."""
        known = list(values)
        return cls(min(known), max(known))

    def scaled(self, factor: float) -> Range:
        """Return both ends multiplied."""
        return Range(self.low * factor, self.high * factor)

    def shifted(self, by: float) -> Range:
        """Return both ends with a figure added."""
        return Range(self.low + by, self.high + by)

    def __str__(self) -> str:
        return f"{self.low:,.0f}" if self.low == self.high else f"{self.low:,.0f} to {self.high:,.0f}"


@dataclass(frozen=True)
class ModelFigures:
    """The models that the sweep builds."""

    names: tuple[str, ...]
    tokens: Range
    depth: Range
    embed_dim: Range
    num_heads: Range
    parameters: Range


@dataclass(frozen=True)
class DataFigures:
    """Images of each split."""

    name: str
    train: int
    validation: int
    test: int
    selection: int
    num_classes: int
    channels: int


@dataclass(frozen=True)
class StageFigures:
    """One attack, or of one that is made of parts the first, or the others."""

    label: str
    images: int
    passes: Range | None
    """Forward passes for one trial, a backward pass counted as two: from every image falling at once to every image
    withstanding; None if the attack does not say."""
    parts: int
    threat: Threat
    surrogate: str | None = None
    """The model that it sees instead of the judged one."""


@dataclass(frozen=True)
class ParentFigures:
    """One parent that is trained before the trials."""

    label: str
    """Its names."""
    method: str
    recipe: TrainingConfig
    steps: int
    children: tuple[str, ...]
    """Labels of the method entries that start from it."""


@dataclass(frozen=True)
class Plan:
    """What a sweep would run."""

    config: SweepConfig
    to_fetch: tuple[str, ...]
    """What is not on this machine and would be fetched at the launch, one clause each."""
    left_out: tuple[str, ...]
    """What the models would leave out of the weights that they start from, one sentence each."""
    model: ModelFigures
    data: DataFigures
    epochs: Range
    steps: Range
    """Optimizer steps of one trial."""
    image_passes: Range
    """Training images seen by parents and trials together, each as often as it is seen; methods may add passes of their
    own."""
    stages: tuple[StageFigures, ...]
    test_stages: tuple[StageFigures, ...]
    parents: tuple[ParentFigures, ...]
    """Those that the sweep trains."""
    monitor_passes: Range | None
    """Forward passes of one trial's monitor, counted as a stage's are; None if it is off."""
    checkpoint_bytes: Range
    """Of one running trial."""
    final_bytes: Range
    """Of all final models."""
    verdict_bytes: float
    """Of all verdicts, if every stage ran on every trial."""
    image_bytes: float
    """Of the adversarial images that are kept, if all of them fell."""
    record_bytes: float
    """Of ledger, logs and MLflow's own files, roughly."""

    @property
    def total_bytes(self) -> float:
        """Of the whole sweep at its end, at most, with one training beside."""
        return (
            self.checkpoint_bytes.high
            + self.final_bytes.high
            + sum((self.verdict_bytes, self.image_bytes, self.record_bytes))
        )


def describe(config: SweepConfig) -> Plan:
    """Load the data as far as they are there, build the models without weights, and add up; needs no network.

    Raises: DataError if the data set cannot be loaded or may not be fetched; ModelError the same of weights, or if they
        do not fit; ConfigError if an attack or a batch size does not go with the data.
    """
    missing = to_fetch(config)
    splits = _load(config)
    problems = list(data_problems(config.attacks, config.training, splits, config.parents))
    if problems:
        raise ConfigError(problems)
    model = _model_figures(config, splits)
    trainings = list(config.training.discrete_corners())
    epochs = Range.over(t.epochs for t in trainings)
    seen = len(splits.train.labels)
    parents = _parent_figures(config, seen)
    before, kept = sum(p.recipe.epochs for p in parents), config.trials + len(parents)
    sizes = {"validation": len(splits.validation.labels), "test": len(splits.test.labels)}
    planned = planned_stages(config.attacks, splits.num_classes, sizes) if config.attacks is not None else ()
    return Plan(
        config=config,
        to_fetch=tuple(missing),
        left_out=tuple(check_fit(config, splits)),
        model=model,
        data=_data_figures(config, splits),
        epochs=epochs,
        steps=Range.over(t.epochs * steps_per_epoch(seen, t) for t in trainings),
        image_passes=Range(seen * (epochs.low * config.trials + before), seen * (epochs.high * config.trials + before)),
        stages=_stage_figures(planned, "validation"),
        test_stages=_stage_figures(planned, "test"),
        parents=parents,
        monitor_passes=_monitor_passes(config.monitor, trainings, splits),
        checkpoint_bytes=_checkpoint_bytes(model.parameters, [*trainings, *(p.recipe for p in parents)]),
        final_bytes=model.parameters.scaled(BYTES_PER_WEIGHT * kept),
        verdict_bytes=sum(_verdict_bytes(stage) * _judged_trials(config, stage) for stage in planned),
        image_bytes=sum(_image_bytes(config, splits, s) * _judged_trials(config, s) for s in planned if s.keep_images),
        record_bytes=kept * TRIAL_BYTES + (config.trials * epochs.high + before) * EPOCH_BYTES,
    )


def _load(config: SweepConfig) -> Splits:
    """Load the splits, or what is known of them before they are fetched.

    Pixel statistics are not measured, which takes long for images on disk.
    """
    data = config.data.model_copy(update={"mean": (0.5,), "std": (0.5,)})
    with_selection = any(training.select == "best" for training in config.training.discrete_corners())
    return outline_splits(data, config.model.at_defaults().img_size, with_selection=with_selection)


def _data_figures(config: SweepConfig, splits: Splits) -> DataFigures:
    return DataFigures(
        name=config.data.name,
        train=len(splits.train.labels),
        validation=len(splits.validation.labels),
        test=len(splits.test.labels),
        selection=len(splits.selection.labels) if splits.selection else 0,
        num_classes=splits.num_classes,
        channels=splits.channels,
    )


def _model_figures(config: SweepConfig, splits: Splits) -> ModelFigures:
    models = thin(list(dict.fromkeys(config.model.discrete_corners())), MAX_MODELS)
    facts = [model_facts(model, splits.channels, splits.num_classes) for model in models]
    return ModelFigures(
        names=tuple(dict.fromkeys(fact.name for fact in facts)),
        tokens=Range.over(fact.tokens for fact in facts),
        depth=Range.over(fact.depth for fact in facts),
        embed_dim=Range.over(fact.embed_dim for fact in facts),
        num_heads=Range.over(fact.num_heads for fact in facts),
        parameters=Range.over(_count_parameters(model, splits.channels, splits.num_classes) for model in models),
    )


def _count_parameters(config: ModelConfig, channels: int, num_classes: int) -> int:
    bare = config.model_copy(update={"pretrained": False, "weights": None})
    half = (0.5,) * channels
    with torch.device("meta"):
        model = build_model(bare, num_classes=num_classes, channels=channels, mean=half, std=half)
    return sum(parameter.numel() for parameter in model.parameters())


def _parent_figures(config: SweepConfig, train_images: int) -> tuple[ParentFigures, ...]:
    return tuple(
        ParentFigures(
            label=parent.label,
            method=parent.config.label,
            recipe=parent.config.training,
            steps=parent.config.training.epochs * steps_per_epoch(train_images, parent.config.training),
            children=tuple(entry.label for entry in config.methods if entry.start_from in parent.names),
        )
        for parent in config.trained_parents
    )


def _stage_figures(planned: Sequence[PlannedStage], split: Split) -> tuple[StageFigures, ...]:
    """Add up the parts of every attack; the part that judges every trial stands for itself."""
    groups: dict[str, list[PlannedStage]] = {}
    for stage in planned:
        if stage.split == split:
            is_objective = split == "validation" and stage.position == 0
            groups.setdefault(stage.label if is_objective else stage.column, []).append(stage)
    return tuple(_figures_of(stages) for stages in groups.values())


def _figures_of(stages: Sequence[PlannedStage]) -> StageFigures:
    """Return the figures of an attack's parts: an image that falls to the first one costs no other."""
    first = stages[0]
    each = [stage.passes for stage in stages if stage.passes is not None]
    known = len(each) == len(stages)
    passes = Range(each[0][0], sum(most for _, most in each)).scaled(first.images) if known else None
    label = first.column if len(stages) > 1 else first.label
    return StageFigures(label, first.images, passes, len(stages), Threat(**first.threat), first.surrogate)


def _monitor_passes(monitor: MonitorConfig, trainings: Sequence[TrainingConfig], splits: Splits) -> Range | None:
    if not monitor.images:
        return None
    images = sum(min(monitor.images, len(part.labels)) for part in (splits.train, splits.validation))
    looks = Range.over(math.ceil(t.epochs / monitor.every) for t in trainings)  # the last epoch always counts
    low, high = Pgd.passes(pgd_of(monitor), splits.num_classes)
    return Range(looks.low * low, looks.high * high).scaled(images)


def _judged_trials(config: SweepConfig, stage: PlannedStage) -> int:
    """Return on how many trials a stage may run."""
    tested = 0 if config.attacks is None else config.attacks.tested
    return config.trials if stage.split == "validation" or tested is None else min(config.trials, tested)


def _verdict_bytes(stage: PlannedStage) -> float:
    return stage.images * VERDICT_BYTES + math.ceil(stage.images / (PACKED_BATCHES * stage.batch_size)) * UNIT_BYTES


def _image_bytes(config: SweepConfig, splits: Splits, stage: PlannedStage) -> float:
    side = max(model.img_size for model in config.model.discrete_corners())
    return stage.images * splits.channels * side**2 * BYTES_PER_WEIGHT


def trial_bytes(config: SweepConfig, num_classes: int) -> TrialBytes:
    """Return what one training of a sweep writes at most, with `SLACK`; takes the data set to have three channels."""
    models = thin(list(dict.fromkeys(config.model.discrete_corners())), MAX_MODELS)
    parameters = Range.over(_count_parameters(model, 3, num_classes) for model in models)
    trainings = [*config.training.discrete_corners(), *(parent.config.training for parent in config.trained_parents)]
    kept = _checkpoint_bytes(parameters, trainings).high * SLACK
    return TrialBytes(round(kept / KEPT), KEPT, round(parameters.high * BYTES_PER_WEIGHT * SLACK))


def _checkpoint_bytes(parameters: Range, trainings: Sequence[TrainingConfig]) -> Range:
    """Of the checkpoints that a running trial keeps: weights, optimizer, moving average and best epoch."""
    copies = Range.over(1 + OPTIMIZER_COPIES[t.optimizer] + (t.ema_decay > 0) + (t.select == "best") for t in trainings)
    return Range(parameters.low * copies.low, parameters.high * copies.high).scaled(KEPT * BYTES_PER_WEIGHT)
