"""The images of a sweep: in this process, and on every node once."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from search_spaces.errors import SweepError
from sweeps.config import SweepConfig

if TYPE_CHECKING:
    from trainables.dataset import Splits
    from trainables.node_data import NodeData


def load_data(config: SweepConfig, *, keep: bool = False) -> Splits:
    """Load the images that the sweep's models are judged on. Args: keep: for others in this process who ask again."""
    from trainables.dataset import load_splits, loaded_splits
    from trainables.registry import load_plugins

    load_plugins(config.plugins)
    img_size, with_selection = _images_of(config)
    return (loaded_splits if keep else load_splits)(config.data, img_size, with_selection=with_selection)


def hold_images(config: SweepConfig) -> NodeData | None:
    """Let every node hold the images once; None where its workers load them."""
    from trainables.dataset import loaded_splits
    from trainables.node_data import hold, key_of
    from trainables.registry import find, load_plugins

    load_plugins(config.plugins)
    if find("datasets", config.data.name).reads_files:
        return None
    try:
        splits = load_data(config, keep=True)
    except SweepError as error:  # this machine may lack what the nodes have
        logging.getLogger("paretune.images").warning("the driver cannot load the images: %s", error)
        return None
    img_size, with_selection = _images_of(config)
    held = hold(key_of(config.data, img_size, with_selection=with_selection), splits)
    loaded_splits.cache_clear()  # they are in Ray's memory now
    return held


def _images_of(config: SweepConfig) -> tuple[int, bool]:
    """Return the side of the sweep's images in pixels, and whether some of them choose the epoch."""
    return config.model.at_defaults().img_size, config.training.at_defaults().select == "best"
