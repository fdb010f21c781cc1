"""Small stand-ins for what is downloaded, as real files: CIFAR and Imagenette archives, and a local web server."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.datasets import Imagenette as TorchvisionImagenette

from trainables.datasets.cifar10 import Cifar10
from trainables.datasets.cifar100 import Cifar100
from trainables.datasets.imagenet import Imagenet
from trainables.datasets.imagenette import Imagenette

CLASSES, TRAIN, TEST = 3, 20, 10
"""Images of each class."""


def use_small_sets(patch: pytest.MonkeyPatch, web: Path, address: str) -> None:
    """Write small archives into `web` and let the data sets look for them at `address`: 3 classes, 20 and 10 images."""
    patch.setenv("no_proxy", "127.0.0.1")
    for dataset, original, label in ((Cifar10, CIFAR10, "labels"), (Cifar100, CIFAR100, "fine_labels")):
        patch.setattr(dataset, "source", _small_cifar(original, label, web, address))
    patch.setattr(TorchvisionImagenette, "_ARCHIVES", {"160px": _small_imagenette(web, address)})
    for dataset in (Cifar10, Cifar100, Imagenette):
        patch.setattr(dataset, "train_counts", (TRAIN,) * CLASSES)
        patch.setattr(dataset, "test_counts", (TEST,) * CLASSES)
    patch.setattr(Imagenet, "num_classes", CLASSES)


def write_class_folders(root: Path, parts: tuple[str, str], suffix: str = "JPEG") -> None:
    """Write images of 3 classes with WordNet names, 20 and 10 of each, 12×12."""
    draw = np.random.default_rng(2)
    for part, count in zip(parts, (TRAIN, TEST), strict=True):
        for label in range(CLASSES):
            folder = root / part / f"n0000000{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.{suffix}")


@dataclass
class Web:
    """A running web server."""

    address: str
    delay_s: float = 0.0
    """Before each answer."""
    fetched: list[str] = field(default_factory=list)
    """Paths of all GET requests."""


@contextmanager
def serve(folder: Path) -> Iterator[Web]:
    """Serve a folder on a free port."""
    web = Web("")

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            web.fetched.append(self.path)
            time.sleep(web.delay_s)
            with suppress(ConnectionError):
                super().do_GET()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    web.address = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class _Python2Pickler(pickle.Pickler):
    """Writes a dtype as the authors of CIFAR did, in Python 2."""

    def reducer_override(self, value: Any) -> Any:
        return (np.dtype, ("u1", 0, 1)) if isinstance(value, np.dtype) else NotImplemented


def _small_cifar(original: Any, label: str, web: Path, address: str) -> Any:
    draw = np.random.default_rng(1)
    files: dict[str, bytes] = {}
    train, test = [name for name, _ in original.train_list], [name for name, _ in original.test_list]
    for names, count in ((train, TRAIN), (test, TEST)):
        labels = np.arange(count * CLASSES) % CLASSES
        for name, part in zip(names, np.array_split(labels, len(names)), strict=True):
            pixels = draw.integers(0, 256, (len(part), 3072), dtype=np.uint8)
            content = io.BytesIO()
            _Python2Pickler(content, protocol=2).dump({"data": pixels, label: part.tolist()})
            files[name] = content.getvalue()
    meta = {original.meta["key"]: [f"class{number}" for number in range(CLASSES)]}
    files[original.meta["filename"]] = pickle.dumps(meta)
    archive = _pack({f"{original.base_folder}/{name}": content for name, content in files.items()})
    (web / original.filename).write_bytes(archive)
    changes = {
        "url": f"{address}/{original.filename}",
        "tgz_md5": md5(archive),
        "train_list": [[name, md5(files[name])] for name in train],
        "test_list": [[name, md5(files[name])] for name in test],
        "meta": {**original.meta, "md5": md5(files[original.meta["filename"]])},
    }
    return type("SmallCifar", (original,), changes)


def _small_imagenette(web: Path, address: str) -> tuple[str, str]:
    folder = web / "imagenette2-160"
    write_class_folders(folder, ("train", "val"))
    archive = _pack({str(file.relative_to(web)): file.read_bytes() for file in folder.rglob("*.JPEG")})
    (web / "imagenette2-160.tgz").write_bytes(archive)
    return f"{address}/imagenette2-160.tgz", md5(archive)


def _pack(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()
