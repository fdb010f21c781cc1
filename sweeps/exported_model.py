"""A trained model handed over: weights and configuration that timm loads by itself, and a card that says what it is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from search_spaces.errors import SweepError
from sweeps.columns import usual_threat
from sweeps.folder import SweepFolder
from sweeps.records import TrialRecord
from sweeps.report_rows import cell_texts
from sweeps.snapshot import ABSENT, Snapshot, accuracy

CARD = """---
library_name: timm
tags: [image-classification, robustness, timm]
---
# {title}

{what}

```python
import timm
model = timm.create_model("local-dir:{place}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

The model takes normalised images of {size} × {size}; `transform` resizes and normalises as in training.
Attacks saw pixels in [0, 1], with the normalisation inside the model.

## Figures

{figures}

≤ marks an upper bound: attacks were still to run, or were spared. Intervals are 95 % (Wilson) over the images. The
figures are of one seed; those of another training differ.

## Training

```json
{config}
```
"""


def export_model(snapshot: Snapshot, folder: SweepFolder, number: int, to: Path) -> Path:
    """Write ``model.safetensors``, timm's ``config.json`` and a card ``README.md`` into a new folder; returns it.

    Args:   to: the folder; it must not exist, or be empty.
    Raises: SweepError if the folder is taken, if the trial has no finished model, or if timm alone cannot run it.
    """
    trial = next((t for t in snapshot.trials if t.number == number), None)
    if trial is None or trial.weights_digest is None:
        state = "does not exist" if trial is None else f"is {trial.state} and has no finished model"
        raise SweepError(f"trial {number} {state}; `status` lists the trials.")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise SweepError(f"{to} exists already; nothing was written. Choose another folder with --out.")
    partial = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        _write_model(folder.trial_place(number), partial)
        (partial / "README.md").write_text(card(snapshot, trial, to), encoding="utf-8")
        if to.exists():
            to.rmdir()
        partial.rename(to)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to


def _write_model(trial_place: str, place: Path) -> None:
    import timm
    import torch
    from timm.models import _hub

    from trainables.trial import load_final
    from trainables.trial_folder import fetched_final

    model, splits, meta = load_final(fetched_final(trial_place), device=torch.device("cpu"))
    vit: Any = model.vit
    channels, size = splits.channels, meta["config"]["model"]["img_size"]
    mean, std = (tuple(one) * (channels if len(one) == 1 else 1) for one in (splits.mean, splits.std))
    data = {"input_size": (channels, size, size), "mean": mean, "std": std, "crop_pct": 1.0}
    place.parent.mkdir(parents=True, exist_ok=True)
    _hub.save_for_hf(vit, str(place), safe_serialization=True, data_config=data)
    try:
        timm.create_model(f"local-dir:{place}", pretrained=True)
    except RuntimeError as error:  # keys that timm's own model does not have
        raise SweepError(f"timm alone cannot run this model; its method has changed it: {error}") from error


def card(snapshot: Snapshot, trial: TrialRecord, place: Path) -> str:
    """Return the model's card. Args: place: the folder that the loading example names."""
    sweep, config = snapshot.sweep, dict(trial.config)
    name, size = config["model"]["name"], config["model"]["img_size"]
    rows = [("clean, validation", accuracy(trial.clean_acc)), ("clean, test", accuracy(trial.test_clean_acc))]
    usual = usual_threat(snapshot.columns)
    for column, cell in zip(snapshot.columns, snapshot.cells(trial), strict=True):
        rows.append((f"{column.title(usual)}, {column.split} images", cell_texts(cell)["text"]))
    shown = [row for row in rows if row[1] != ABSENT]
    threat = f" Threat model: {usual['norm']}, ε {usual['epsilon']:.6g} on the [0, 1] pixel scale." if usual else ""
    return CARD.format(
        title=f"{name}, {trial.label}",
        what=f"Trial {trial.number} of the sweep {sweep.name} ({sweep.id}), fine-tuned on {config['data']['name']} "
        f"with {trial.label}, seed {trial.seed}, {trial.epochs} epochs; weights {trial.weights_digest}.{threat}",
        place=place,
        size=size,
        figures="\n".join(["| attack | accuracy |", "|---|---|", *(f"| {a} | {b} |" for a, b in shown)]),
        config=json.dumps(config, indent=2),
    )
