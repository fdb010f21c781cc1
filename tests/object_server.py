"""An S3-compatible server on this machine, in a process of its own, for the tests that store objects."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir

import pytest

from search_spaces.object_uri import ObjectUri

KEYS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-nobody",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture(scope="session")
def object_server() -> Iterator[int]:
    """The port of a server without any bucket."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 60
        while not _answers(port):
            assert process.poll() is None, "the server has not started"
            assert time.monotonic() < limit
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/moto-api/")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def new_place(port: int) -> ObjectUri:
    """A prefix in a new bucket. This process has the keys."""
    from pyarrow.fs import S3FileSystem

    place = place_at(port, f"bucket-{uuid.uuid4().hex[:12]}")
    S3FileSystem(**dict(place.options), allow_bucket_creation=True).create_dir(place.path.partition("/")[0])
    return place


def place_at(port: int, bucket: str) -> ObjectUri:
    return ObjectUri.read(f"s3://{bucket}/sweeps?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1")


@pytest.fixture
def bucket(object_server: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ObjectUri:
    """A prefix in a new bucket; this process has the keys, and a temporary folder of its own."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    at_home(monkeypatch, tmp_path / "node-a")
    return new_place(object_server)


def at_home(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let this process be on another machine: its temporary folder is another one, but for Ray's sockets."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("RAY_TMPDIR", os.environ.get("RAY_TMPDIR", gettempdir()))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
