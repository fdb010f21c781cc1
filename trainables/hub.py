"""timm's pretrained weights: whether a model has any, where they are cached, and how they get there.

What is in the cache is read from there and the hub is not asked again: a sweep needs no network once its weights are
staged, and all its trials start from the same file.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from safetensors import SafetensorError
from timm.models import get_pretrained_cfg, is_model_pretrained
from torch import Tensor

from search_spaces.errors import ModelError

FILES = ("model.safetensors", "pytorch_model.bin")
"""Under which names timm's repositories keep weights, in the order in which timm looks for them."""
PATIENCE_S = 10.0
"""How long the hub may take to answer at all; its own client would retry for most of a minute."""


def has_pretrained(name: str) -> bool:
    """Return whether timm knows pretrained weights for a model; asks nobody."""
    return bool(is_model_pretrained(name))


def address(name: str) -> str:
    """Return where a model's weights come from: a repository of the hub, or a URL."""
    config = get_pretrained_cfg(name)
    return str(config.hf_hub_id or config.url) if config is not None else ""


def cached_file(name: str) -> Path | None:
    """Return the file with a model's pretrained weights, or None if it is not on this machine; asks nobody."""
    where = address(name)
    if where.startswith("http"):
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(where).path).name
        return file if file.is_file() else None
    for file_name in FILES:
        found = huggingface_hub.try_to_load_from_cache(where, file_name)
        if isinstance(found, str):
            return Path(found)
    return None


def to_fetch(name: str) -> str:
    """Say what `fetch` would fetch, in one clause; nothing if it is in the cache. Asks nobody.

    Raises: ModelError if the model has no pretrained weights, or they may not be fetched.
    """
    where = address(name)
    if not has_pretrained(name):
        raise ModelError(f"model.pretrained: timm has no pretrained weights of {name}. {_way_out()}")
    if cached_file(name) is not None:
        return ""
    if huggingface_hub.is_offline_mode():
        raise ModelError(
            f"model.pretrained: the weights of {name} ({where}) are not in the cache {constants.HF_HUB_CACHE}, and "
            f"HF_HUB_OFFLINE forbids fetching them. {_way_out(prefetch=True)}"
        )
    return f"the weights of {name} are not in the cache {constants.HF_HUB_CACHE}; to be fetched from {where}"


def fetch(name: str) -> Path:
    """Return the file with a model's pretrained weights, fetched if it is not in the cache.

    Raises: ModelError as `to_fetch`, and if the hub cannot be reached or refuses.
    """
    if to_fetch(name):
        _reach(name)
        _download(name)
    file = cached_file(name)
    if file is None:
        raise ModelError(f"model.pretrained: {address(name)} has no file {' or '.join(FILES)}. {_way_out()}")
    return file


def pretrained_state(name: str, channels: int) -> dict[str, Tensor]:
    """Return a model's pretrained weights in timm's own shapes, its first layer adapted to so many channels.

    Raises: ModelError as `fetch`, and if the file is damaged.
    """
    file = fetch(name)
    try:
        model = timm.create_model(name, pretrained=True, in_chans=channels, pretrained_cfg_overlay={"file": str(file)})
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError) as error:
        raise ModelError(
            f"model.pretrained: {file} cannot be read as weights of {name}: {_first_line(error)}. Delete it; "
            "`run_sweep.py prefetch FILE` fetches it again."
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state


def _reach(name: str) -> None:
    """Fail early and clearly where the weights cannot be fetched."""
    where = address(name)
    host = where if where.startswith("http") else constants.ENDPOINT
    try:
        urllib.request.urlopen(host, timeout=PATIENCE_S).close()
    except urllib.error.HTTPError:
        pass  # it answers, and that is all that is asked here
    except OSError as error:
        raise ModelError(
            f"model.pretrained: the weights of {name} ({where}) are not in the cache {constants.HF_HUB_CACHE}, and "
            f"{host} cannot be reached: {getattr(error, 'reason', error)}. {_way_out(prefetch=True)}"
        ) from error


def _download(name: str) -> None:
    """Let timm fetch the weights into its cache."""
    try:
        timm.create_model(name, pretrained=True)
    except GatedRepoError as error:
        raise ModelError(
            f"model.pretrained: {address(name)} is open to registered users only. Accept its terms there, log in with "
            f"`hf auth login`, and try again. {_way_out()}"
        ) from error
    except (HfHubHTTPError, RuntimeError, OSError, ValueError) as error:
        raise ModelError(
            f"model.pretrained: the weights of {name} cannot be fetched from {address(name)}: {_first_line(error)}. "
            f"{_way_out(prefetch=True)}"
        ) from error


def _way_out(*, prefetch: bool = False) -> str:
    if not prefetch:
        return "Name a local file in model.weights."
    return "Run `run_sweep.py prefetch FILE` where there is network, with the same HF_HOME, or set model.weights."


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
