"""What every registered data set must keep; a new file in trainables/datasets is tested here without being named.

So is one in examples.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainables.archives import serve, use_small_sets, write_class_folders
from trainables.config import data_config_type
from trainables.dataset import load_splits
from trainables.registry import find, names

DATASETS = names("datasets")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What names a small source to each data set that reads files: 3 classes of 20 training and 10 test images.

    Those that come from the web are downloaded from a server on this machine.
    """
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 60), ("test", 30)):
        arrays[f"x_{part}"] = draw.integers(0, 256, (count, 12, 12, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.arange(count) % 3
        for number in range(count):
            place = folder / "images" / part / f"class{number % 3}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(arrays[f"x_{part}"][number]).save(place / f"{number}.png")
    np.savez(folder / "arrays.npz", **arrays)
    (folder / "web").mkdir()
    write_class_folders(folder / "imagenet", ("train", "val"))
    with pytest.MonkeyPatch.context() as patch, serve(folder / "web") as web:
        use_small_sets(patch, folder / "web", web.address)
        yield {
            "arrays": {"path": folder / "arrays.npz"},
            "image_folder": {"path": folder / "images"},
            "imagenet": {"path": folder / "imagenet"},
            **{name: {"root": folder / "root"} for name in ("cifar10", "cifar100", "imagenette")},
        }


@pytest.fixture(scope="module", params=DATASETS)
def config(request, places):
    config_type = data_config_type(request.param)
    given = places.get(request.param, {})
    missing = [name for name, field in config_type.model_fields.items() if field.is_required() and name not in given]
    if missing:
        pytest.skip(f"{request.param} needs {missing}; give it a small source in `places`")
    config = config_type(name=request.param, **given)
    reasons = list(find("datasets", request.param).check(config))
    if reasons and request.param not in places:
        pytest.skip(f"{request.param} is not on this machine: {reasons[0][1]}")
    assert reasons == []
    return config


@pytest.fixture(scope="module")
def splits(config):
    return load_splits(config, 8, with_selection=True)


def vary(config, **changes):
    return type(config).model_validate({**config.model_dump(), **changes})


def positions(part):
    return set(part.index.tolist())


def test_no_image_is_in_two_splits(splits):
    parts = [positions(part) for part in (splits.train, splits.validation, splits.selection)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(splits.train.images.labels)
    assert splits.test.images is not splits.train.images


def test_every_split_has_the_classes_in_their_shares(splits):
    pool = splits.train.images.labels.bincount(minlength=splits.num_classes) / len(splits.train.images.labels)
    for part in (splits.train, splits.validation, splits.selection):
        counts = part.labels.bincount(minlength=splits.num_classes)
        assert (counts - pool * len(part.labels)).abs().max() <= 1.0


def test_images_are_float32_pixels_of_the_asked_size(config, splits):
    for size, found in ((8, splits), (12, load_splits(config, 12, with_selection=False))):
        images = found.validation.take(torch.arange(5))
        assert images.shape == (5, found.channels, size, size)
        assert images.dtype == torch.float32
        assert float(images.min()) >= 0
        assert 0.5 < float(images.max()) <= 1
        assert found.validation.labels.dtype == torch.int64


def test_take_follows_the_order_that_is_asked_for(splits):
    together = splits.train.take(torch.tensor([4, 0, 2]))
    for place, index in enumerate((4, 0, 2)):
        assert torch.equal(splits.train.take(torch.tensor([index]))[0], together[place])


def test_splits_repeat_with_the_seed_and_differ_without(config, splits):
    again = load_splits(config, 8, with_selection=True)
    other = load_splits(vary(config, split_seed=1), 8, with_selection=True)
    assert again.digest() == splits.digest()
    assert positions(again.train) == positions(splits.train)
    assert positions(other.validation) != positions(splits.validation)
    assert other.digest() != splits.digest()
    assert other.test.digest() == splits.test.digest()


def test_validation_does_not_depend_on_whether_an_epoch_is_selected(config, splits):
    without = load_splits(config, 8, with_selection=False)
    assert without.selection is None
    assert positions(without.validation) == positions(splits.validation)
    assert positions(without.train) == positions(splits.train) | positions(splits.selection)


def test_smaller_splits_have_the_asked_size_and_all_classes(config):
    few = load_splits(vary(config, train_images=20, validation_images=10, test_images=10), 8, with_selection=False)
    assert [len(part.labels) for part in (few.train, few.validation, few.test)] == [20, 10, 10]
    assert len(few.train.labels.unique()) == few.num_classes


def test_mean_and_standard_deviation_are_published_or_those_of_the_training_split(config, splits):
    published = find("datasets", config.name).published
    if published is not None:
        assert (splits.mean, splits.std) == published
        assert len(published.mean) == len(published.std) == splits.channels
        return
    images = splits.train.take(torch.arange(len(splits.train.labels))).double()
    assert splits.mean == pytest.approx(images.mean((0, 2, 3)).tolist(), abs=1e-5)
    assert splits.std == pytest.approx(images.std((0, 2, 3), correction=0).tolist(), abs=1e-5)


def test_what_is_prepared_needs_nothing_more_and_its_outline_is_the_data_set_itself(config, splits):
    dataset = find("datasets", config.name)(config, 8)
    dataset.prepare()
    assert dataset.to_fetch() == ""
    assert dataset.outline_splits(with_selection=True).digest() == splits.digest()
    assert dataset.place is None or dataset.place.exists()


def test_configured_statistics_are_taken_as_they_are(config, splits):
    given = vary(config, mean=(0.5,) * splits.channels, std=(0.25,) * splits.channels)
    found = load_splits(given, 8, with_selection=False)
    assert (found.mean, found.std) == ((0.5,) * splits.channels, (0.25,) * splits.channels)
