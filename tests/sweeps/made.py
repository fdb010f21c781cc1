"""A finished sweep without training and without Ray: models made from two trained ones, judged in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sweeps.config import SweepConfig, parse_sweep
from sweeps.coordinator import Coordinator
from sweeps.creation import create_ledger
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from tests.conftest import TINY_MODEL
from tests.sweeps.inline_pool import InlinePool
from trainables.checkpoint import Identity, weights_digest, write_final
from trainables.config import TrialConfig
from trainables.verdicts import clean_correct

PARTS = {"version": "custom", "attacks": ["apgd_ce", "apgd_dlr", "square"], "steps": 4, "queries": 40}
CASCADE = [{"pgd": {"steps": 3}}, {"autoattack": PARTS}]
ATTACKS: Mapping[str, Any] = {"epsilon": 0.04, "images": 40, "batch_size": 20, "stages": CASCADE, "test": None}
State = dict[str, torch.Tensor]


def mixed(plain: State, robust: State, share: float, noise: float = 0.0) -> State:
    """Weights between two models, `share` of the way, with noise of the size of each tensor's spread."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, tensor in plain.items():
        moved = torch.lerp(tensor, robust[name], share)
        spread = float(tensor.std()) if tensor.numel() > 1 else 0.0
        found[name] = moved + noise * spread * torch.randn(tensor.shape, generator=generator)
    return found


def make_sweep(trained: Any, folder: SweepFolder, states: Sequence[State], **sections: Any) -> SweepConfig:
    """Make the folder and the ledger of a sweep whose trials are trained and not judged, one for each of the states."""
    document = {
        "model": TINY_MODEL,
        "methods": ["plain"],
        "attacks": ATTACKS,
        "search": {"trials": len(states), "sampler": "random"},
        "tracking": {"enabled": False},
        **sections,
    }
    config = parse_sweep(document)
    ids = torch.arange(len(trained.splits.validation.labels))

    def fill(ledger: Ledger) -> None:
        with Lease(ledger):
            for number, state in enumerate(states):
                plain = write_trial(trained, folder.trial(number), state)
                trained.model.load_state_dict(state)
                right = clean_correct(trained.model, trained.splits.validation, ids, 256, torch.device("cpu"))
                ledger.propose(number, "plain", plain, {}, {}, seed=number)
                ledger.start_training(number)
                ledger.finish_training(number, float(right.double().mean()), weights_digest(state), 1.0)

    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    try:
        create_ledger(config, folder, trained.splits, fill)
    finally:
        trained.model.load_state_dict(before)
    return config


def write_trial(trained: Any, folder: Path, state: State) -> Mapping[str, Any]:
    """Write a trial's final model; returns its configuration."""
    meta = json.loads((trained.folder / "final" / "meta.json").read_text())
    own = {name: value for name, value in meta.items() if name not in ("files", "meta_digest")}
    config = TrialConfig.model_validate(meta["config"])
    write_final(folder, state, own, Identity(config.digest(), meta["seed"]))
    return config.plain()


def judge_all(config: SweepConfig, ledger: Ledger, folder: SweepFolder) -> None:
    """Judge a sweep's trials as its driver would, to the end."""
    with Lease(ledger):
        coordinator = Coordinator(config, ledger, folder)
        pool: Any = InlinePool()
        coordinator.pool = pool
        while True:
            coordinator.poll()
            running = coordinator.poll_later_stages(final=True)
            if not (running or coordinator.evaluation_needed):
                break
        ledger.complete()
