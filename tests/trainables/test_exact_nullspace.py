"""The exact nullspace of a patch embedding: invisible as it is, empty where patches are small."""

from __future__ import annotations

import pytest
import torch

from search_spaces.errors import ModelError
from trainables.config import ModelConfig
from trainables.nullspace import describe_nullspace, draw_invisible_noise, nullspace_basis, patch_nullspace
from trainables.vit import build_model

WIDE = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
"""Patches of 3 · 64 pixels become tokens of width 24."""


def build(**changes):
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**WIDE, **changes})
    return build_model(config, num_classes=5, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)).double().eval()


@pytest.fixture(autouse=True)
def _own_numbers():
    with torch.random.fork_rng():
        yield


def generator():
    return torch.Generator().manual_seed(1)


def tokens(model, images):
    return model.vit.patch_embed((images - model.mean) / model.std)


@pytest.mark.parametrize(("rows", "columns", "rank"), [(3, 7, 3), (4, 4, 2), (6, 5, 5), (2, 9, 1)])
def test_a_basis_is_orthonormal_mapped_to_zero_and_complete(rows, columns, rank):
    left = torch.randn(rows, rank, generator=generator(), dtype=torch.float64)
    matrix = left @ torch.randn(rank, columns, generator=generator(), dtype=torch.float64)
    basis = nullspace_basis(matrix)
    assert basis.shape == (columns, columns - rank)
    assert float((matrix @ basis).abs().sum()) < 1e-11
    assert torch.allclose(basis.T @ basis, torch.eye(columns - rank, dtype=torch.float64), atol=1e-12)


def test_what_a_float32_matrix_cannot_tell_from_zero_counts_as_zero():
    matrix = torch.diag(torch.tensor([1.0, 1e-3, 1e-9]))
    assert nullspace_basis(matrix).shape[1] == 1
    assert nullspace_basis(matrix.double()).shape[1] == 0


@pytest.mark.parametrize(
    ("name", "patch_size", "left"),
    [
        ("vit_small_patch32_224", 32, 3 * 32**2 - 384),
        ("vit_tiny_patch16_224", 16, 3 * 16**2 - 192),
        ("vit_base_patch16_224", 16, 0),  # 768 numbers, 768 wide
        ("vit_tiny_patch16_224", 4, 0),
    ],
)
def test_its_dimension_is_what_the_rank_leaves(name, patch_size, left):
    torch.manual_seed(0)
    config = ModelConfig(name=name, img_size=patch_size, patch_size=patch_size, depth=1)
    model = build_model(config, num_classes=5, channels=3, mean=(0.5,), std=(0.5,))
    weight = model.vit.patch_embed.proj.weight.detach().flatten(1)
    assert patch_nullspace(model).shape == (3 * patch_size**2, left)
    assert left == weight.shape[1] - int(torch.linalg.matrix_rank(weight))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_vit", "aimv2_large_patch14_224"])
def test_unclipped_noise_changes_no_token_and_no_logit(name):
    """As for a plain embedding, so for one with rows and columns apart, and for one with a norm behind it."""
    model = build(name=name)
    images = torch.rand(4, 3, 16, 16, generator=generator(), dtype=torch.float64)
    noise = draw_invisible_noise(model, 4, 0.5, generator())
    assert noise.shape == images.shape
    assert noise.abs().amax((1, 2, 3)).tolist() == pytest.approx([0.5] * 4)
    assert torch.allclose(tokens(model, images + noise), tokens(model, images), atol=1e-12)
    assert torch.allclose(model(images + noise), model(images), atol=1e-12)


def test_clipping_breaks_it():
    model = build()
    images = torch.rand(4, 3, 16, 16, generator=generator(), dtype=torch.float64)
    noise = draw_invisible_noise(model, 4, 0.5, generator())
    change = tokens(model, (images + noise).clamp(0, 1)) - tokens(model, images)
    assert float(change.detach().abs().max()) > 1e-2


def test_the_order_of_the_basis_is_that_of_the_pixels():
    """Noise whose rows and columns are exchanged is seen."""
    model = build()
    noise = draw_invisible_noise(model, 1, 0.5, generator())
    grey = torch.full_like(noise, 0.5)
    assert torch.allclose(tokens(model, grey + noise), tokens(model, grey), atol=1e-12)
    assert not torch.allclose(tokens(model, grey + noise.mT), tokens(model, grey), atol=1e-3)


def test_an_empty_nullspace_says_so_and_gives_no_noise():
    small = build(img_size=8, patch_size=2)
    assert "is empty: 12 numbers of a patch become 24" in describe_nullspace(small)
    with pytest.raises(ModelError, match="is empty"):
        draw_invisible_noise(small, 1, 0.5, generator())
    assert "168 of 192 dimensions" in describe_nullspace(build())


def test_patches_of_features_have_no_such_nullspace():
    hybrid = build(name="vit_tiny_r_s16_p8_224", img_size=64, patch_size=4)
    with pytest.raises(ModelError, match="not one linear map of the pixels"):
        patch_nullspace(hybrid)
