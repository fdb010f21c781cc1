"""Images that a node holds once: the same as loaded ones, never in the way of a trial; and on real nodes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainables import node_data
from trainables.config import DataConfig
from trainables.dataset import Splits, Subset, load_splits, loaded_splits
from trainables.datasets.arrays import ArraysConfig
from trainables.datasets.digits import DigitsConfig
from trainables.node_data import NodeData, has_room, hold, key_of, pack, store_bytes, unpack
from trainables.registry import find
from trainables.training import Training
from trainables.trial import find_splits, load_final

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bytes_file(tmp_path: Path) -> ArraysConfig:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(60) % 3
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images[:12], y_test=labels[:12])
    return ArraysConfig(path=tmp_path / "a.npz")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Ray's object store as a dictionary, whose arrays come back read-only; `nodes` and `error` are the test's."""
    import ray

    kept: dict[str, Any] = {"nodes": [{"Alive": True, "Resources": {"object_store_memory": 1e9}}], "error": None}

    def put(packed: Any) -> str:
        if kept["error"]:
            raise kept["error"]
        kept["object"] = packed
        return f"reference {len(kept)} {id(packed)}"

    def get(reference: str, timeout: float) -> Any:
        if kept["error"]:
            raise kept["error"]
        for array in [*(a for pair in kept["object"].sets for a in pair)]:
            array.flags.writeable = False
        return kept["object"]

    monkeypatch.setattr(ray, "put", put)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "nodes", lambda: kept["nodes"])
    node_data._mapped.cache_clear()
    return kept


def held_for(config: Any) -> NodeData | None:
    """What the driver of a sweep with such trials puts on the nodes."""
    with_selection = config.training.select == "best"
    splits = load_splits(config.data, config.model.img_size, with_selection=with_selection)
    return hold(key_of(config.data, config.model.img_size, with_selection=with_selection), splits)


def assert_equal(found: Splits, expected: Splits) -> None:
    assert found.digest() == expected.digest()
    facts = ("num_classes", "channels", "mean", "std")
    assert [getattr(found, name) for name in facts] == [getattr(expected, name) for name in facts]
    first = torch.arange(5)
    assert torch.equal(found.train.take(first), expected.train.take(first))
    assert found.train.take(first).dtype == torch.float32
    assert (found.selection is None) == (expected.selection is None)


@pytest.mark.parametrize("with_selection", [False, True])
def test_unpacked_images_are_those_that_were_packed(bytes_file: ArraysConfig, with_selection: bool) -> None:
    for config in (bytes_file, DigitsConfig(train_images=50)):
        splits = load_splits(config, 8, with_selection=with_selection)
        packed = pack(splits)
        assert packed is not None
        assert_equal(unpack(packed), splits)


def test_images_of_which_several_parts_are_taken_are_packed_once(bytes_file: ArraysConfig) -> None:
    packed = pack(load_splits(bytes_file, 8, with_selection=True))
    assert packed is not None
    assert [len(pixels) for pixels, _ in packed.sets] == [60, 12]
    assert packed.nbytes == 72 * 8 * 8 * 3 + 72 * 8 + 72 * 8  # pixels, labels, and each image's place in one part


def test_images_that_are_read_from_files_are_not_packed(bytes_file: ArraysConfig) -> None:
    splits = load_splits(bytes_file, 8, with_selection=False)

    class FromFiles:
        labels = splits.test.labels

    files: Any = FromFiles()
    assert pack(replace(splits, test=Subset(files, torch.arange(3)))) is None


def test_a_set_that_reads_files_says_so() -> None:
    """Otherwise the driver would list a folder of a million images to find that there is nothing to share."""
    names = [path.stem for path in (ROOT / "trainables" / "datasets").glob("[a-z]*.py")]
    assert {name for name in names if find("datasets", name).reads_files} == {"image_folder", "imagenet", "imagenette"}


def test_a_trial_takes_what_the_node_holds_and_loads_nothing(
    store: dict[str, Any], tiny_trial: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_trial()
    held = held_for(config)
    monkeypatch.setattr("trainables.trial.loaded_splits", None)
    found = find_splits(config, held)
    assert_equal(found, load_splits(config.data, 8, with_selection=False))
    assert find_splits(config, held) is found, "one set stays mapped"


@pytest.mark.parametrize(
    "other", [{"data": {"split_seed": 1}}, {"model": {"img_size": 10}}, {"training": {"select": "best"}}]
)
def test_a_trial_on_other_images_loads_them(
    store: dict[str, Any], tiny_trial: Callable[..., Any], other: dict[str, Any]
) -> None:
    held, config = held_for(tiny_trial()), tiny_trial(**other)
    with_selection = config.training.select == "best"
    assert_equal(
        find_splits(config, held), load_splits(config.data, config.model.img_size, with_selection=with_selection)
    )


def test_a_training_on_held_images_is_the_same_bit_by_bit(
    store: dict[str, Any], tiny_trial: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny_trial()
    held = held_for(config)
    digests = []
    for name, given in (("loaded", None), ("held", held)):
        training = Training(config, 3, tmp_path / name, held=given)
        while not training.is_done:
            training.run_epoch()
        digests.append(training.finish().weights_digest)
    assert digests[0] == digests[1]
    before = pack(load_splits(config.data, 8, with_selection=False))
    assert before is not None
    assert all(np.array_equal(a, b) for a, b in zip(store["object"].sets[0], before.sets[0], strict=True))
    _, splits, _ = load_final(tmp_path / "held", device=torch.device("cpu"), held=held)
    assert splits is find_splits(config, held)


def test_a_worker_that_cannot_have_the_images_loads_them_and_asks_once(
    store: dict[str, Any], tiny_trial: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    from ray.exceptions import GetTimeoutError

    config = tiny_trial()
    held = held_for(config)
    store["error"] = GetTimeoutError("not there in time")
    with caplog.at_level(logging.WARNING, "paretune.node_data"):
        for _ in range(2):
            assert_equal(find_splits(config, held), load_splits(config.data, 8, with_selection=False))
    assert [record.getMessage() for record in caplog.records] == [
        "the images cannot be had from Ray's object store (not there in time): this worker loads them."
    ]


@pytest.mark.parametrize("why", ["small", "full"])
def test_a_store_without_room_is_said_and_holds_nothing(
    store: dict[str, Any], tiny_trial: Callable[..., Any], caplog: pytest.LogCaptureFixture, why: str
) -> None:
    from ray.exceptions import ObjectStoreFullError

    if why == "small":
        store["nodes"].append({"Alive": True, "Resources": {"object_store_memory": 1000.0}})
    else:
        store["error"] = ObjectStoreFullError("no room")
    with caplog.at_level(logging.WARNING, "paretune.node_data"):
        assert held_for(tiny_trial()) is None
    assert caplog.records[0].getMessage().endswith("every worker loads them into memory of its own.")
    assert "object" not in store


def test_half_of_the_smallest_living_nodes_store_is_room() -> None:
    nodes = [
        {"Alive": True, "Resources": {"object_store_memory": 200.0}},
        {"Alive": True, "Resources": {"object_store_memory": 100.0}},
        {"Alive": False, "Resources": {}},
    ]
    assert store_bytes(nodes) == [200.0, 100.0]
    assert has_room(50, store_bytes(nodes))
    assert not has_room(51, store_bytes(nodes))
    assert not has_room(1, [])


def test_the_images_of_two_sets_stay_loaded() -> None:
    config: DataConfig = DigitsConfig(train_images=20)
    assert loaded_splits(config, 8, with_selection=False) is loaded_splits(config, 8, with_selection=False)


# On the real Ray


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster whose only node, the driver's, runs nothing."""
    from cluster.connect import prepare_environment

    prepare_environment()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *sys.path]))
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200_000_000})
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def look(held: NodeData, config: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the digest of the images that a worker finds, and the names of the mappings in which their pixels lie."""
    from trainables.config import TrialConfig

    splits: Any = find_splits(TrialConfig.model_validate(config), held)
    tensors = [splits.train.images.pixels, splits.test.images.pixels]
    mappings = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    found = []
    for tensor in tensors:
        for span, *rest in mappings:
            start, end = (int(word, 16) for word in span.split("-"))
            if start <= tensor.data_ptr() < end:
                found.append(" ".join(rest[4:]))
    return splits.digest(), found


@pytest.mark.slow
@pytest.mark.ray
def test_nodes_that_join_later_map_the_images_from_their_own_store(nodes: Any, tiny_trial: Callable[..., Any]) -> None:
    import ray

    config = tiny_trial(data={"train_images": None, "test_images": None})
    held = held_for(config)
    assert held is not None
    later = [nodes.add_node(num_cpus=1, object_store_memory=200_000_000) for _ in range(2)]
    nodes.wait_for_nodes()
    asking = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(look)
    found = ray.get([asking.remote(held, config.plain()) for _ in later], timeout=120)
    expected = load_splits(config.data, 8, with_selection=False).digest()
    for digest, mappings in found:
        assert digest == expected
        assert len(mappings) == 2
        assert all("plasma" in name for name in mappings), mappings
