"""A checkpoint from elsewhere: what it must hold, whose normalisation it gets, and that it can be judged afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from search_spaces.errors import ModelError
from trainables.checkpoint import read_final, weights_digest
from trainables.imported import import_checkpoint
from trainables.trial import load_final

WHOLE = {"train_images": None, "validation_images": None, "test_images": None}


@pytest.fixture
def config(tiny_trial):
    """Of the model that the session has trained."""
    return tiny_trial(data=WHOLE)


def timm_weights(trained):
    return {name: tensor.clone() for name, tensor in trained.model.vit.state_dict().items()}


def logits(model, trained):
    with torch.no_grad():
        return model(trained.splits.test.take(torch.arange(20)))


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_state_dict_of_the_timm_model_becomes_the_model_with_the_data_sets_normalisation(
    trained, config, tmp_path, name
):
    write = torch.save if name.endswith(".pth") else save_file
    write(timm_weights(trained), tmp_path / name)
    found = import_checkpoint(tmp_path / name, config, 5, tmp_path / "trial")
    model, splits, meta = load_final(tmp_path / "trial", device=torch.device("cpu"))
    assert torch.equal(logits(model, trained), logits(trained.model, trained))
    right = model(splits.validation.take(torch.arange(len(splits.validation.labels)))).argmax(1)
    assert found.clean_acc == float((right == splits.validation.labels).double().mean()) == meta["clean_acc"]
    assert found.weights_digest == meta["weights_digest"] == weights_digest(trained.model.state_dict())
    assert (meta["seed"], meta["epoch"], meta["data_digest"]) == (5, 0, splits.digest())


def test_the_final_weights_of_a_trial_bring_their_own_normalisation(trained, config, tmp_path):
    state = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    normalisation = [name for name in state if not name.startswith("vit.")]
    assert normalisation
    for name in normalisation:
        state[name] = state[name] * 1.5
    save_file(state, tmp_path / "final.safetensors")
    import_checkpoint(tmp_path / "final.safetensors", config, 0, tmp_path / "trial")
    final = read_final(tmp_path / "trial")
    assert all(torch.equal(final.weights[name], tensor) for name, tensor in state.items())
    model, *_ = load_final(tmp_path / "trial", device=torch.device("cpu"))
    assert not torch.equal(logits(model, trained), logits(trained.model, trained))


@pytest.mark.parametrize("missing", ["head.weight", "head.bias", "norm.weight", "blocks.2.attn.qkv.weight"])
def test_a_checkpoint_that_does_not_fill_the_whole_model_is_refused(trained, config, tmp_path, missing):
    weights = {name: tensor for name, tensor in timm_weights(trained).items() if name != missing}
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(ModelError) as caught:
        import_checkpoint(tmp_path / "part.safetensors", config, 0, tmp_path / "trial")
    assert missing.split(".")[0] in str(caught.value)
    assert read_final(tmp_path / "trial") is None


def test_a_head_for_other_classes_is_refused(trained, config, tmp_path):
    weights = timm_weights(trained)
    weights["head.weight"], weights["head.bias"] = torch.zeros(7, 48), torch.zeros(7)
    save_file(weights, tmp_path / "seven.safetensors")
    with pytest.raises(ModelError, match="number of classes"):
        import_checkpoint(tmp_path / "seven.safetensors", config, 0, tmp_path / "trial")


def test_what_is_no_file_of_weights_is_refused_by_its_name(config, tmp_path):
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"object": Path()}, tmp_path / "code.pth")  # what is no tensor could be code
    for name in ("text.pth", "text.safetensors", "code.pth", "none.pth"):
        with pytest.raises(ModelError, match=name.replace(".", r"\.")):
            import_checkpoint(tmp_path / name, config, 0, tmp_path / "trial")
