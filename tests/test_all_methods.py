"""One sweep on the digits with every method and four stacks, on equal terms, through to its front."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from sweeps import load
from sweeps.records import State
from tests.crash.drivers import Driver
from trainables.registry import built_in_names

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SWEEP = """
model: {name: vit_tiny_patch16_224, img_size: 8, patch_size: 4, embed_dim: 12, depth: 2, num_heads: 2}
data: {name: digits, test_images: 60}
training:
  epochs: 30
  warmup_epochs: 2
  batch_size: 64
  learning_rate: {log_uniform: [3.0e-3, 8.0e-3]}
  weight_decay: [0, 0.01]
  ema_decay: 0.98
parents:
  robust:
    methods: {adversarial: {epsilon: 0.07, steps: 2, epsilon_warmup_epochs: 10}}
    training: {learning_rate: 5.0e-3}
  tuned: {methods: {plain: {}}, training: {learning_rate: 5.0e-3}}
methods:
  - plain
  - jasmin: {k: [0, 3]}
  - msvp
  - adversarial: {epsilon: 0.07, steps: 2, epsilon_warmup_epochs: 10}
  - trades: {epsilon: 0.07, steps: 2, epsilon_warmup_epochs: 10}
  - nullspace
  - {safer: {epsilon: 0.07, steps: 2, score_batches: 2}, start_from: robust}
  - {robustness_tokens: {count: 4, epsilon: 0.05, steps: 5, head: kept}, start_from: tuned}
  - {jasmin: {k: 0}, adversarial: {epsilon: 0.07, steps: 2, epsilon_warmup_epochs: 10}}
  - {msvp: {}, trades: {epsilon: 0.07, steps: 2, epsilon_warmup_epochs: 10}}
  - {jasmin: {k: 0}, nullspace: {}}
  - {jasmin: {k: 0}, safer: {epsilon: 0.07, steps: 2, score_batches: 2}, start_from: robust}
attacks:
  epsilon: 0.07
  images: 100
  stages: [{pgd: {steps: 5}}, {apgd_ce: {steps: 10}}]
  columns: {TRANSFER: {pgd: {steps: 5}, surrogate: backbone}}
  test: {images: 40, stages: [pgd], trials: 3}
search: {trials: 24, allocation: equal, startup_trials: 24}
tracking: {enabled: false}
"""


def test_every_method_and_four_stacks_run_on_equal_terms_to_a_front(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(SWEEP)
    driver = Driver(tmp_path, "launch", "s.yaml", "--name", "s", "--storage", ".")
    assert driver.wait(900) == 0, driver.text()
    sweep = load(tmp_path / "s")
    snapshot = sweep.snapshot()
    labels = Counter(trial.label for trial in snapshot.trials)
    assert len(labels) == 12
    assert set(labels.values()) == {2}
    assert {name for label in labels for name in label.partition("@")[0].split("+")} == set(built_in_names("methods"))
    assert {trial.state for trial in snapshot.trials} == {State.FINISHED}
    assert snapshot.front
    assert snapshot.is_settled()
    best = sweep.trials.groupby("method")[["clean_acc", "robust_acc"]].max()
    assert best.loc["plain", "clean_acc"] > 0.8
    assert best.loc["adversarial", "robust_acc"] > best.loc["plain", "robust_acc"] + 0.1
    assert best.loc["safer@robust", "robust_acc"] > best.loc["plain", "robust_acc"] + 0.1
    page = (tmp_path / "s" / "report.html").read_text()
    assert '<h2 id="methods">' in page
    assert all(f"</i>{label}" in page for label in labels)
    children = [t for t in snapshot.trials if "@" in t.label]
    assert all(snapshot.parent_seconds[t.number] > 0 for t in children)
    assert set(snapshot.parent_seconds) == {t.number for t in children}
    transfers = sweep.attacks.query("attack == 'TRANSFER'")
    assert set(transfers["state"]) == {"done"}
