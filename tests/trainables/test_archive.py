"""Data sets from the web: fetched once, never half, and a clear message wherever that is not possible."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch

from search_spaces.errors import DataError
from tests.trainables import archives
from tests.trainables.archives import CLASSES, TEST, TRAIN, serve, use_small_sets
from trainables.archive import ArchiveConfig
from trainables.dataset import load_splits, outline_splits
from trainables.datasets.cifar10 import Cifar10, Cifar10Config
from trainables.datasets.cifar100 import Cifar100, Cifar100Config
from trainables.datasets.imagenette import Imagenette, ImagenetteConfig

FILE = "cifar-10-python.tar.gz"
BATCHES = "cifar-10-batches-py"
ONE_DOWNLOAD = [f"/{FILE}"] * 2
"""torchvision asks once where the file is and once for the file."""


@pytest.fixture
def web(tmp_path, monkeypatch):
    folder = tmp_path / "web"
    folder.mkdir()
    with serve(folder) as running:
        use_small_sets(monkeypatch, folder, running.address)
        yield running


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def cifar(root, **changes):
    return Cifar10(Cifar10Config(root=root, **changes), 32)


def without_web(web, monkeypatch):
    """Let CIFAR-10 look for its archive at a port where nobody listens."""
    monkeypatch.setattr(Cifar10.source, "url", f"http://127.0.0.1:1/{FILE}")
    return len(web.fetched)


def kept(root):
    return sorted(path.name for path in root.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize(
    ("dataset", "config_type", "label"), [(Cifar10, Cifar10Config, "labels"), (Cifar100, Cifar100Config, "fine_labels")]
)
def test_the_images_are_those_of_the_files_in_their_order(web, root, dataset, config_type, label):
    pool, test, classes = dataset(config_type(root=root), 32).load()
    source = dataset.source
    for part, files in ((pool, source.train_list), (test, source.test_list)):
        batches = [pickle.loads((root / source.base_folder / name).read_bytes()) for name, _ in files]
        rows = np.concatenate([batch["data"] for batch in batches])
        # the authors: 1024 red values row by row, then green, then blue
        index, row, column = 7, 5, 30
        found = part.take(torch.tensor([index]))[0, :, row, column] * 255
        assert found.round().tolist() == [rows[index][colour * 1024 + row * 32 + column] for colour in range(3)]
        assert part.labels.tolist() == [value for batch in batches for value in batch[label]]
        assert part.pixels.dtype == torch.uint8
    assert classes == CLASSES


def test_a_data_set_is_downloaded_once_and_then_needs_no_network(web, root, monkeypatch):
    first = load_splits(Cifar10Config(root=root), 8, with_selection=False)
    assert web.fetched == ONE_DOWNLOAD
    assert kept(root) == [BATCHES, FILE]
    without_web(web, monkeypatch)
    again = load_splits(Cifar10Config(root=root, download=False), 8, with_selection=False)
    assert again.digest() == first.digest()
    assert web.fetched == ONE_DOWNLOAD


def test_a_wrong_checksum_is_told_with_what_was_expected_and_nothing_is_kept(web, root, monkeypatch):
    right = Cifar10.source.tgz_md5
    monkeypatch.setattr(Cifar10.source, "tgz_md5", "0" * 32)
    with pytest.raises(DataError, match=f"cifar10.*has the checksum {right}.*expected {'0' * 32}.*try again"):
        cifar(root).load()
    assert kept(root) == []


def test_a_download_that_is_cut_short_is_noticed_and_keeps_what_was_there(web, root, tmp_path):
    cifar(root).prepare()
    (root / BATCHES / "data_batch_3").write_bytes(b"damaged")
    (root / FILE).write_bytes(b"damaged")
    whole = (tmp_path / "web" / FILE).read_bytes()
    (tmp_path / "web" / FILE).write_bytes(whole[:1000])
    with pytest.raises(DataError, match=r"1,000 bytes.*cut short"):
        cifar(root).prepare()
    assert (root / BATCHES / "data_batch_2").is_file()
    assert (root / FILE).read_bytes() == b"damaged"


def test_half_an_archive_is_said_and_replaced(web, root, tmp_path):
    root.mkdir()
    whole = (tmp_path / "web" / FILE).read_bytes()
    (root / FILE).write_bytes(whole[: len(whole) // 2])
    said = cifar(root).to_fetch()
    assert f"there is no folder {root / BATCHES}" in said
    assert f"{root / FILE} has the checksum" in said
    assert f"to be downloaded from {web.address}/{FILE}" in said
    cifar(root).prepare()
    assert (root / FILE).read_bytes() == whole
    assert cifar(root).to_fetch() == ""


def test_a_damaged_file_is_restored_from_the_archive_without_network(web, root, monkeypatch):
    cifar(root).prepare()
    (root / BATCHES / "test_batch").write_bytes(b"damaged")
    asked = without_web(web, monkeypatch)
    said = cifar(root).to_fetch()
    assert f"{root / BATCHES / 'test_batch'} is missing or has the wrong checksum" in said
    assert f"to be unpacked from {root / FILE}" in said
    assert len(cifar(root).load()[1].labels) == CLASSES * TEST
    assert len(web.fetched) == asked


def test_a_whole_archive_with_missing_files_is_refused(web, root, monkeypatch):
    monkeypatch.setattr(Cifar10.source, "train_list", [*Cifar10.source.train_list, ["data_batch_6", "0" * 32]])
    with pytest.raises(DataError, match=r"right checksum, and yet .*data_batch_6"):
        cifar(root).load()


def test_without_network_the_message_says_what_to_do(web, root, monkeypatch):
    without_web(web, monkeypatch)
    with pytest.raises(DataError) as caught:
        cifar(root).load()
    for words in ("data set cifar10", f"127.0.0.1:1/{FILE}", "refused", "run_sweep.py prefetch", str(root)):
        assert words in str(caught.value)
    assert kept(root) == []


def test_an_archive_that_is_gone_from_the_web_is_told(web, root, tmp_path):
    (tmp_path / "web" / FILE).unlink()
    with pytest.raises(DataError, match="cannot be downloaded: File not found"):
        cifar(root).load()


def test_a_root_that_cannot_be_written_is_named(web, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file cannot be written.*Choose another data\.root"):
        cifar(tmp_path / "file").load()


def test_what_may_not_be_downloaded_is_refused_before_anything_runs(web, root):
    config = Cifar10Config(root=root, download=False)
    ((field, sentence),) = Cifar10.check(config)
    assert field == "download"
    assert str(root / BATCHES) in sentence
    assert "data.download: true" in sentence
    cifar(root).prepare()
    assert list(Cifar10.check(config)) == []
    (root / BATCHES / "batches.meta").unlink()
    with pytest.raises(DataError, match=r"batches\.meta is missing.*data\.download is false"):
        outline_splits(config, 8, with_selection=False)


@pytest.mark.parametrize("config_type", [Cifar10Config, Cifar100Config, ImagenetteConfig])
def test_an_outline_has_the_sizes_of_what_is_still_to_be_fetched(web, root, config_type):
    config = config_type(root=root)
    outline = outline_splits(config, 8, with_selection=True)
    assert web.fetched == []
    assert not root.exists()
    splits = load_splits(config, 8, with_selection=True)
    for name in ("train", "validation", "selection", "test"):
        told, real = getattr(outline, name), getattr(splits, name)
        assert told.labels.bincount().tolist() == real.labels.bincount().tolist()
        assert told.take(torch.tensor([0])).shape == real.take(torch.tensor([0])).shape
    assert (outline.num_classes, outline.channels) == (splits.num_classes, splits.channels)


def test_published_counts_are_those_of_the_papers():
    assert [sum(counts) for counts in (Cifar10.train_counts, Cifar10.test_counts)] == [50_000, 10_000]
    assert [sum(counts) for counts in (Cifar100.train_counts, Cifar100.test_counts)] == [50_000, 10_000]
    assert len(Cifar100.train_counts) == len(Cifar100.test_counts) == 100
    assert [sum(counts) for counts in (Imagenette.train_counts, Imagenette.test_counts)] == [9_469, 3_925]


def test_a_lost_image_of_imagenette_is_noticed_and_restored(web, root):
    config = ImagenetteConfig(root=root)
    dataset = Imagenette(config, 8)
    dataset.prepare()
    (root / "imagenette2-160" / "val" / "n00000001" / "3.JPEG").unlink()
    assert "val has 29 images in 3 classes, expected 30" in dataset.to_fetch()
    with pytest.raises(DataError, match="download is false"):
        Imagenette(ImagenetteConfig(root=root, download=False), 8).load()
    assert len(dataset.load()[1].labels) == CLASSES * TEST


def test_what_a_killed_process_left_is_cleared_away(web, root):
    left = root / f".{FILE}.partial"
    left.mkdir(parents=True)
    (left / FILE).write_bytes(b"half")
    assert len(cifar(root).load()[0].labels) == CLASSES * TRAIN
    assert kept(root) == [BATCHES, FILE]


def test_an_archive_that_unpacks_elsewhere_is_refused(web, root, tmp_path, monkeypatch):
    shutil.unpack_archive(tmp_path / "web" / FILE, tmp_path)
    with tarfile.open(tmp_path / "web" / FILE, "w:gz") as archive:
        archive.add(tmp_path / BATCHES, "other")
    monkeypatch.setattr(Cifar10.source, "tgz_md5", archives.md5((tmp_path / "web" / FILE).read_bytes()))
    with pytest.raises(DataError, match=f"holds no folder {BATCHES}"):
        cifar(root).load()


def prepare(config: ArchiveConfig, together):
    together.wait()
    Cifar10(config, 8).prepare()


def test_two_processes_that_need_it_at_once_download_it_once(web, root):
    web.delay_s = 0.3  # the second asks while the first is still waiting for the server
    context = multiprocessing.get_context("fork")
    together = context.Barrier(2)
    processes = [context.Process(target=prepare, args=(Cifar10Config(root=root), together)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert web.fetched == ONE_DOWNLOAD
    assert cifar(root).to_fetch() == ""
