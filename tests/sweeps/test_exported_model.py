"""A model handed over: timm alone loads it, and it computes what was judged."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from search_spaces.errors import SweepError
from sweeps.exported_model import export_model
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.snapshot import Snapshot
from trainables.trial import load_final


@pytest.fixture
def snapshot(made: SweepFolder) -> Snapshot:
    ledger = Ledger.at(made.ledger)
    try:
        return Snapshot.read(ledger)
    finally:
        ledger.close()


def test_timm_alone_computes_the_same_logits(made: SweepFolder, snapshot: Snapshot, tmp_path: Path) -> None:
    place = export_model(snapshot, made, 1, tmp_path / "model")
    assert sorted(path.name for path in place.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    model = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
    ours, splits, _ = load_final(made.trial(1), device=torch.device("cpu"))
    images = splits.validation.take(torch.arange(16))
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        assert torch.equal(model((images - mean) / std), ours(images))
    assert {path.name for path in tmp_path.iterdir()} == {"model", "runs"}


def test_the_card_says_what_it_is_and_its_example_runs(made: SweepFolder, snapshot: Snapshot, tmp_path: Path) -> None:
    place = export_model(snapshot, made, 1, tmp_path / "model")
    said = (place / "README.md").read_text()
    assert f'timm.create_model("local-dir:{place}", pretrained=True)' in said
    assert "ε 0.04 on the [0, 1] pixel scale" in said
    assert f"{snapshot.trials[1].clean_acc:.3f}" in said
    code = said.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    exec(code, names)
    assert isinstance(names["model"], torch.nn.Module)


def test_what_cannot_be_handed_over_is_refused_and_leaves_nothing(
    made: SweepFolder, snapshot: Snapshot, tmp_path: Path
) -> None:
    with pytest.raises(SweepError, match="trial 99 does not exist"):
        export_model(snapshot, made, 99, tmp_path / "model")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    with pytest.raises(SweepError, match="exists already; nothing was written"):
        export_model(snapshot, made, 1, tmp_path / "taken")
    assert {path.name for path in tmp_path.iterdir()} == {"taken", "runs"}
