"""Data sets that read files: what is malformed is named, and digests follow the content."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces.errors import DataError
from tests.trainables.archives import write_class_folders
from trainables.config import DataConfig
from trainables.dataset import InMemory, balanced_subset, load_splits, resized, split_stratified
from trainables.datasets.arrays import Arrays, ArraysConfig
from trainables.datasets.image_folder import ImageFolder, ImageFolderConfig
from trainables.datasets.imagenet import Imagenet, ImagenetConfig


def arrays(**changes):
    good = {
        "x_train": np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8) % 255,
        "y_train": np.arange(40) % 4,
        "x_test": np.full((8, 8, 8), 200, dtype=np.uint8),
        "y_test": np.arange(8) % 4,
    }
    good["x_train"][0, 0, 0] = 255
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


@pytest.fixture
def save(tmp_path):
    def write(**changes):
        np.savez(tmp_path / "data.npz", **arrays(**changes))
        return ArraysConfig(path=tmp_path / "data.npz")

    return write


def load(config, img_size=8):
    return load_splits(config, img_size, with_selection=False)


def test_grey_arrays_get_a_channel_and_bytes_become_fractions(save):
    splits = load(save())
    assert splits.channels == 1
    assert float(splits.test.take(torch.tensor([0])).max()) == pytest.approx(200 / 255)
    assert splits.num_classes == 4


def test_floats_in_the_unit_interval_are_taken_as_they_are(save):
    pixels = np.random.default_rng(0).random((40, 8, 8, 3))
    splits = load(save(x_train=pixels, x_test=pixels[:8]))
    assert splits.channels == 3
    assert torch.allclose(splits.test.take(torch.tensor([2]))[0], torch.from_numpy(pixels[2]).float().permute(2, 0, 1))


def test_other_sizes_are_interpolated(save):
    assert load(save(), img_size=4).train.take(torch.tensor([0])).shape == (1, 1, 4, 4)
    assert load(save(), img_size=16).test.take(torch.tensor([0])).unique().tolist() == pytest.approx([200 / 255])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "lacks x_test; it holds x_train, y_train, y_test"),
        ({"x_train": np.zeros((40, 8))}, r"x_train has the shape \(40, 8\)"),
        ({"x_train": np.zeros((40, 8, 6), np.uint8)}, "x_train has the shape"),
        ({"x_train": np.zeros((40, 3, 8, 8), np.uint8)}, "x_train has the shape"),
        ({"x_train": np.zeros((40, 8, 8), np.int64)}, "x_train has the type int64"),
        ({"x_train": np.full((40, 8, 8), 2.0)}, r"x_train must lie in \[0, 1\]"),
        ({"x_train": np.full((40, 8, 8), np.nan)}, r"x_train must lie in \[0, 1\]"),
        ({"x_test": np.zeros((0, 8, 8), np.uint8), "y_test": np.zeros(0, int)}, "x_test is empty"),
        ({"x_test": np.zeros((8, 8, 8, 3), np.uint8)}, "x_train has 1 channels and x_test 3"),
        ({"y_train": np.arange(39)}, "40 images and y_train 39 labels"),
        ({"y_train": np.arange(40) % 4 * 1.0}, "y_train has the shape .* float64"),
        ({"y_train": np.arange(40) % 4 - 1}, "y_train has the class -1"),
        ({"y_test": np.full(8, 4)}, "y_test has class 4"),
        ({"y_train": np.array([None] * 40, dtype=object)}, "y_train cannot be read"),
    ],
)
def test_malformed_arrays_are_named(changes, message, save):
    with pytest.raises(DataError, match=message):
        load(save(**changes))


def test_files_that_are_missing_or_no_archive_are_refused_before_loading(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK but not really")
    for name, message in (("absent.npz", "there is no file"), ("broken.npz", "no .npz file")):
        config = ArraysConfig(path=tmp_path / name)
        ((field, sentence),) = Arrays.check(config)
        assert field == "path"
        assert message in sentence
        with pytest.raises(DataError, match=message):
            load(config)


def test_relative_paths_belong_to_the_working_directory(save, tmp_path, monkeypatch):
    save()
    monkeypatch.chdir(tmp_path)
    assert list(Arrays.check(ArraysConfig(path="data.npz"))) == []


def test_the_digest_follows_every_pixel_and_label(save):
    first = load(save()).digest()
    assert load(save()).digest() == first
    pixels = arrays()["x_test"].copy()
    pixels[3, 2, 1] += 1
    assert load(save(x_test=pixels)).digest() != first
    assert load(save(y_test=np.arange(8)[::-1] % 4)).digest() != first


@pytest.fixture
def folder(tmp_path):
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for number in range(10):
                colour = (250 * (label == "dog"), number, 100)
                Image.new("RGB", (20, 10 + number), colour).save(tmp_path / part / label / f"{number}.png")
    return tmp_path


def test_folders_give_square_colour_images_with_the_class_of_their_folder(folder):
    splits = load(ImageFolderConfig(path=folder))
    images = splits.test.take(torch.arange(20))
    assert images.shape == (20, 3, 8, 8)
    reds = images[:, 0].mean((1, 2)) > 0.5
    assert torch.equal(reds.long(), splits.test.labels)


def test_a_val_folder_serves_as_test(folder):
    (folder / "test").rename(folder / "val")
    assert list(ImageFolder.check(ImageFolderConfig(path=folder))) == []
    assert len(load(ImageFolderConfig(path=folder)).test.labels) == 20


def test_the_digest_follows_names_and_sizes_and_not_the_place(folder, tmp_path_factory):
    first = load(ImageFolderConfig(path=folder)).digest()
    moved = tmp_path_factory.mktemp("elsewhere") / "images"
    folder.rename(moved)
    assert load(ImageFolderConfig(path=moved)).digest() == first
    content = (moved / "test" / "cat" / "1.png").read_bytes()
    (moved / "test" / "cat" / "1.png").write_bytes(content + b"x")
    second = load(ImageFolderConfig(path=moved)).digest()
    assert second != first
    (moved / "test" / "cat" / "0.png").rename(moved / "test" / "cat" / "00.png")
    assert load(ImageFolderConfig(path=moved)).digest() not in (first, second)


def test_folders_that_are_missing_are_named(tmp_path):
    ((_, sentence),) = ImageFolder.check(ImageFolderConfig(path=tmp_path / "absent"))
    assert "there is no folder" in sentence
    sentences = [sentence for _, sentence in ImageFolder.check(ImageFolderConfig(path=tmp_path))]
    assert "no folder train" in sentences[0]
    assert "neither a folder test nor a folder val" in sentences[1]
    with pytest.raises(DataError, match="no folder train"):
        load(ImageFolderConfig(path=tmp_path))


def test_parts_with_different_classes_are_refused(folder):
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    with pytest.raises(DataError, match="dog, wolf"):
        load(ImageFolderConfig(path=folder))


@pytest.fixture
def imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(Imagenet, "num_classes", 3)
    write_class_folders(tmp_path, ("train", "val"))
    return ImagenetConfig(path=tmp_path)


def test_imagenet_has_its_classes_in_the_order_of_their_names(imagenet):
    splits = load(imagenet)
    assert splits.test.labels.bincount().tolist() == [10, 10, 10]
    assert (splits.mean, splits.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert load(ImagenetConfig(path=imagenet.path, mean=(0.5,) * 3)).mean == (0.5,) * 3
    assert load(ImagenetConfig(path=imagenet.path, mean=(0.5,) * 3)).std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: (path / "val").rename(path / "test"), "there is no folder .*val; .*image-net.org"),
        (lambda path: (path / "train" / "n00000003").mkdir(), "train has 4 class folders .* ImageNet has 3;"),
        (
            lambda path: (path / "val" / "n00000002").rename(path / "val" / "cat"),
            "val has 2 class folders .* and 1 others",
        ),
    ],
)
def test_what_is_not_imagenet_is_refused_before_it_is_read(change, message, imagenet):
    change(imagenet.path)
    ((field, sentence),) = Imagenet.check(imagenet)
    assert field == "path"
    assert re.search(message, sentence)
    with pytest.raises(DataError, match=message):
        load(imagenet)


def test_a_class_folder_without_images_and_a_broken_image_are_refused(folder):
    (folder / "train" / "dog" / "3.png").write_bytes(b"not a picture")
    pool, _, _ = ImageFolder(ImageFolderConfig(path=folder), 8).load()
    with pytest.raises(DataError, match=r"3\.png cannot be read"):
        pool.take(torch.arange(20))
    for part in ("train", "test"):
        (folder / part / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        load(ImageFolderConfig(path=folder))


def test_bytes_stay_bytes_when_they_are_resized():
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert resized(pixels, 8) is pixels
    assert resized(pixels, 5).dtype == torch.uint8
    assert resized(pixels.float() / 255, 5).dtype == torch.float32


def test_many_images_are_resized_as_each_alone():
    pixels = torch.randint(0, 256, (1100, 1, 4, 4), dtype=torch.uint8)
    alone = torch.cat([resized(image[None], 3) for image in pixels[990:1010]])
    assert torch.equal(resized(pixels, 3)[990:1010], alone)


def test_a_stratified_split_takes_the_rounded_share_of_each_class():
    labels = torch.tensor([0] * 10 + [1] * 5 + [2] * 30)
    rest, taken = split_stratified(labels, 0.2, torch.Generator().manual_seed(0))
    assert labels[taken].bincount().tolist() == [2, 1, 6]
    assert sorted([*rest.tolist(), *taken.tolist()]) == list(range(45))


def test_a_balanced_subset_takes_the_classes_in_turns():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 50)
    kept = balanced_subset(labels, torch.arange(103), 13, torch.Generator().manual_seed(0))
    assert labels[kept].bincount().tolist() == [5, 3, 5]
    assert balanced_subset(labels, torch.arange(103), None, torch.Generator()).tolist() == list(range(103))


def test_an_empty_split_is_refused(save):
    with pytest.raises(DataError, match="validation split is empty"):
        load(ArraysConfig(**{**save().model_dump(), "validation_fraction": 0.01}))


def test_the_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    from trainables.datasets.digits import Digits, DigitsConfig

    bunch = load_digits()
    parts = Digits(DigitsConfig(), 8).load()[:2]
    ours = sorted(
        (int(y), *x.mul(16).flatten().tolist()) for part in parts for x, y in zip(part.pixels, part.labels, strict=True)
    )
    theirs = sorted((int(y), *x.ravel().tolist()) for x, y in zip(bunch.images, bunch.target, strict=True))
    assert ours == theirs


def test_a_class_index_out_of_range_is_refused(monkeypatch):
    from trainables.datasets.digits import Digits

    wrong = InMemory(torch.zeros(10, 1, 8, 8), torch.full((10,), 10))
    monkeypatch.setattr(Digits, "load", lambda self: (wrong, wrong, 10))
    with pytest.raises(DataError, match=r"\[0, 10\)"):
        load(DataConfig())
