"""The configuration of one trial: model, data, training and methods, complete and frozen.

`TrialConfig` is everything that decides a trial's weights beside its seed. It travels as JSON (ledger, workers,
checkpoints) and comes back equal: ``TrialConfig.model_validate(config.plain()) == config``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from search_spaces.config import Config, Number, digest_of
from search_spaces.domains import LogUniform
from search_spaces.errors import SweepError


class MethodConfig(Config):
    """Base of every method's configuration."""


class AttackConfig(Config):
    """Base of every attack's configuration; norm and ε belong to the plan, not to the attack."""


class DataConfig(Config):
    """What every data set understands; a data set's own configuration adds to it."""

    name: str = "digits"
    """Key of the data set: a file in trainables/datasets, or a plugin."""
    validation_fraction: Annotated[Number, Field(gt=0, lt=1)] = 0.2
    """Share of the training images that becomes the validation split, stratified by class."""
    selection_fraction: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """Share of the remaining training images that chooses the epoch if training.select is "best"; else unused."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the splits; one sweep has one value, so that all trials see the same images."""
    train_images: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many training images, stratified; None keeps all."""
    validation_images: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many validation images, stratified; None keeps all."""
    test_images: Annotated[int, Field(ge=1)] | None = None
    """Keep only so many test images, stratified; None keeps all."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean on the [0, 1] pixel scale; None takes the data set's published one, or measures the training
    split where there is none."""
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    """Per-channel standard deviation on the [0, 1] pixel scale; None as for `mean`."""


class ModelConfig(Config):
    """Which timm vision transformer, and how it is cut to the images."""

    name: str = "vit_tiny_patch16_224"
    """Any VisionTransformer that timm knows."""
    img_size: Annotated[int, Field(ge=1)] = 32
    """Side of the square input, in pixels."""
    patch_size: Annotated[int, Field(ge=1)] = 4
    """Side of a patch, in pixels; must divide img_size. A hybrid's counts positions of its convolutional features."""
    embed_dim: Annotated[int, Field(ge=1)] | None = None
    """Width; None keeps the model's own."""
    depth: Annotated[int, Field(ge=1)] | None = None
    """Number of blocks; None keeps the model's own."""
    num_heads: Annotated[int, Field(ge=1)] | None = None
    """Attention heads per block; None keeps the model's own."""
    global_pool: Literal["token", "avg", "avgmax", "max", "map", "prr"] | None = None
    """How the tokens become the features of the head; None keeps the model's own. The last norm stays before or after
    it, as the model has it, so that weights still fit; map and prr bring weights of their own."""
    reg_tokens: Annotated[int, Field(ge=0)] | None = None
    """Number of register tokens; None keeps the model's own."""
    qk_norm: bool | None = None
    """Whether queries and keys pass a norm of their own; None keeps the model's own."""
    qkv_bias: bool = True
    """Whether the query, key and value projections have a bias."""
    drop_path: Annotated[
        Number,
        Field(ge=0, lt=1),
    ] = 0.0
    """Stochastic depth rate."""
    pretrained: bool = False
    """Load timm's pretrained weights (from the hub, or from its local cache)."""
    weights: Path | None = None
    """Local weights (.safetensors, or a .pth state dict); excludes `pretrained`."""
    resampling: Literal["timm", "block_sum"] = "timm"
    """How weights for larger patches are cut to patch_size: timm (pseudo-inverse, bicubic positions), or each block of
    the patch kernel summed and positions bilinear, as SpecFormer published; block_sum needs a divisor."""

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        reasons = []  # all at once: pydantic shows no more than the first error of a validator
        if self.img_size % self.patch_size:
            reasons.append(f"patch_size must divide img_size, found {self.patch_size} and {self.img_size}")
        if self.embed_dim and self.num_heads and self.embed_dim % self.num_heads:
            reasons.append(f"num_heads must divide embed_dim, found {self.num_heads} and {self.embed_dim}")
        if self.pretrained and self.weights:
            reasons.append("pretrained and weights exclude each other; choose one")
        if reasons:
            raise ValueError("; ".join(reasons))
        return self


class TrainingConfig(Config):
    """The fine-tuning recipe that all methods share."""

    epochs: Annotated[int, Field(ge=1)] = 40
    """Passes over the training split."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Images per step."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """At most so many images per forward pass; gradients add up to those of the whole batch. None is batch_size."""
    drop_last: bool = False
    """Leave out the last batch of an epoch if it is smaller than the others."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[Number, Field(gt=0), LogUniform(1e-4, 1e-2)] = 1e-3
    """Peak learning rate."""
    weight_decay: Annotated[Number, Field(ge=0), LogUniform(1e-5, 1e-1)] = 1e-4
    """On weight matrices; on everything else too if decay_everything."""
    decay_everything: bool = False
    """Decay biases, norms, position embeddings and tokens as well, as SpecFormer's and many SGD recipes do."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Each block learns at this multiple of the rate of the block above it, the head at the full rate; 1 is off."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """SGD's momentum; AdamW does not read it."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate per step after the warm-up."""
    warmup_epochs: Annotated[Number, Field(ge=0)] = 0.0
    """Epochs of linear warm-up from 0, counted inside `epochs`."""
    final_learning_rate: Annotated[Number, Field(ge=0)] = 0.0
    """Where the cosine ends."""
    clip_norm: Annotated[Number, Field(gt=0)] | None = 1.0
    """Largest L2 norm of the whole gradient; None does not clip."""
    label_smoothing: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    mixup: Annotated[Number, Field(ge=0)] = 0.0
    """Mixup's Beta parameter (timm); 0 switches it off."""
    cutmix: Annotated[Number, Field(ge=0)] = 0.0
    """CutMix's Beta parameter (timm); 0 switches it off."""
    mixup_probability: Annotated[Number, Field(ge=0, le=1)] = 1.0
    """Share of batches that Mixup or CutMix touches."""
    crop_padding: Annotated[int, Field(ge=0)] = 0
    """Random crop after zero-padding by so many pixels; 0 switches it off."""
    flip: bool = False
    """Random horizontal flip."""
    ema_decay: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Decay per step of an exponential moving average of the weights, which is then the trial's model; 0 is off."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward passes in training, attacks in it included, by autocast; weights, optimizer, statistics of methods
    and all evaluation stay in float32."""
    compile: bool = False
    """Compile the blocks with torch.compile: a slow start of every trial for faster steps, on a GPU as a rule."""
    select: Literal["last", "best"] = "last"
    """The trial's model: the last epoch, or the best on a share of the training data (data.selection_fraction)."""

    @model_validator(mode="after")
    def _fits(self) -> TrainingConfig:
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs must not exceed epochs, found {self.warmup_epochs:g} and {self.epochs}")
        if self.final_learning_rate > self.learning_rate:
            found = f"{self.final_learning_rate:g} and {self.learning_rate:g}"
            raise ValueError(f"final_learning_rate must not exceed learning_rate, found {found}")
        return self


class MonitorConfig(Config):
    """PGD on some training and validation images while a trial trains; it changes no weight."""

    images: Annotated[int, Field(ge=0)] = 0
    """So many training and so many validation images, class-balanced, the same in every epoch and trial; 0 is off."""
    every: Annotated[int, Field(ge=1)] = 1
    """Epochs between two looks; the last epoch is always looked at."""
    steps: Annotated[int, Field(ge=1)] = 10
    """Gradient steps, from one random start."""
    step_size: Annotated[Number, Field(gt=0)] | None = None
    """Length of a step on the [0, 1] pixel scale; None is 2.5 ε / steps."""
    norm: Literal["linf", "l2"] | None = None
    """None takes that of the section attacks, or linf if there is none."""
    epsilon: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Radius on the [0, 1] pixel scale; None takes that of the section attacks."""


class StartFrom(Config):
    """The parent whose weights a trial starts from, in place of fresh or pretrained ones."""

    name: str
    identity: str
    """Digest of the parent's configuration and seed, or the SHA-256 of its checkpoint."""


class TrialConfig(Config):
    """Everything that decides a trial's weights beside its seed, and the monitor, which decides none."""

    model: ModelConfig = ModelConfig()
    data: SerializeAsAny[DataConfig] = DataConfig()
    training: TrainingConfig = TrainingConfig()
    methods: dict[str, SerializeAsAny[MethodConfig]] = Field(default_factory=dict)
    """The stack: method name → its configuration, in the order in which they wrap the model. Empty is plain."""
    monitor: MonitorConfig = MonitorConfig()
    """Its norm and epsilon are given if it is on."""
    threads: Annotated[int, Field(ge=1)] = 1
    """CPU threads of torch; part of the configuration because it changes the order of floating-point sums."""
    plugins: tuple[str, ...] = ()
    """Files that define further methods or data sets."""
    start_from: StartFrom | None = None
    """None starts from what `model` says."""

    @property
    def label(self) -> str:
        """The stack's name: ``jasmin``, ``jasmin+adversarial``, with a parent ``safer@robust``; ``plain`` for none."""
        return label_of(self.methods, None if self.start_from is None else self.start_from.name)

    def plain(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready data; `start_from` is there only where there is a parent."""
        values = super().plain()
        return {name: value for name, value in values.items() if name != "start_from" or value is not None}

    def digest(self) -> str:
        """Return a stable name for what decides the weights; the monitor does not."""
        return digest_of({key: value for key, value in self.plain().items() if key != "monitor"})

    @model_validator(mode="before")
    @classmethod
    def _load_plugins(cls, values: Any) -> Any:
        from trainables.registry import load_plugins

        if isinstance(values, Mapping):
            load_plugins(values.get("plugins", ()))
        return values

    @field_validator("monitor")
    @classmethod
    def _ball_is_given(cls, monitor: MonitorConfig) -> MonitorConfig:
        if monitor.images and (monitor.norm is None or monitor.epsilon is None):
            raise ValueError(f"a monitor needs a norm and an epsilon; found {monitor.norm} and {monitor.epsilon}")
        return monitor

    @field_validator("data", mode="before")
    @classmethod
    def _find_data(cls, value: Any) -> Any:
        return (
            data_config_type(value.get("name", "digits")).model_validate(value) if isinstance(value, Mapping) else value
        )

    @field_validator("methods", mode="before")
    @classmethod
    def _find_methods(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {
            key: config if isinstance(config, MethodConfig) else method_config_type(key).model_validate(config or {})
            for key, config in value.items()
        }


def label_of(methods: Iterable[str], parent: str | None = None) -> str:
    """Return the name of a stack of methods, and of the parent that it starts from: ``jasmin+safer@robust``."""
    stack = "+".join(methods) or "plain"
    return stack if parent is None else f"{stack}@{parent}"


def method_config_type(key: str) -> type[MethodConfig]:
    """Return the configuration type of a method; ValueError (a pydantic error in a validator) if there is none."""
    found: type[MethodConfig] = _config_type("methods", key)
    return found


def attack_config_type(key: str) -> type[AttackConfig]:
    """Return the configuration type of an attack; ValueError if there is none."""
    found: type[AttackConfig] = _config_type("attacks", key)
    return found


def data_config_type(key: str) -> type[DataConfig]:
    """Return the configuration type of a data set; ValueError if there is none."""
    found: type[DataConfig] = _config_type("datasets", key)
    return found


def _config_type(kind: Literal["methods", "attacks", "datasets"], key: str) -> Any:
    from trainables.registry import find

    try:
        return find(kind, key).Config
    except SweepError as error:
        raise ValueError(str(error)) from error
