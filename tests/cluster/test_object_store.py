"""The verbs of an object store against a real S3-compatible server, and what is said where it is none."""

from __future__ import annotations

import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import object_store
from cluster.object_store import ObjectStore, make_mirror, require_objects
from search_spaces.errors import ObjectStoreError, StorageError
from search_spaces.object_uri import ObjectUri
from search_spaces.storage import storage_problem
from tests.object_server import KEYS, bucket, free_port, object_server, place_at

__all__ = ["bucket", "object_server"]


def test_what_is_put_is_read_listed_and_deleted(bucket: ObjectUri, tmp_path: Path) -> None:
    store = ObjectStore(bucket)
    assert store.sizes() == {}
    assert store.read("a/b") is None
    store.put_object("a/b", b"12345")
    (tmp_path / "large").write_bytes(bytes(range(256)) * 2**15)
    store.upload_file(tmp_path / "large", "a/c")
    assert store.sizes() == {"a/b": 5, "a/c": 2**23}
    assert store.sizes("a/b") == {}, "a prefix is a folder, not the beginning of a word"
    assert store.read_head("a/b", 2) == b"12"
    assert store.read_head("a/b", 99) == b"12345"
    assert store.read_head("a/none", 2) is None
    assert store.download("a/c", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "large").read_bytes()
    assert not store.download("a/none", tmp_path / "none")
    store.put_object("a/b", b"new")
    assert store.read("a/b") == b"new"
    store.delete_object("a/b")
    store.delete_object("a/b")
    assert store.sizes() == {"a/c": 2**23}
    store.delete_folder("a")
    store.delete_folder("a")
    assert store.sizes() == {}


def test_a_check_leaves_nothing(bucket: ObjectUri) -> None:
    require_objects(bucket)
    assert ObjectStore(bucket).sizes() == {}


def test_a_bucket_that_is_not_there_is_one_clear_error(bucket: ObjectUri) -> None:
    place = ObjectUri(bucket.scheme, "no-such-bucket/sweeps", bucket.options)
    with pytest.raises(
        ObjectStoreError, match=r"^s3://no-such-bucket.*NO_SUCH_BUCKET.*Nothing was started.*must exist"
    ):
        require_objects(place)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server that denies everything."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET = do_PUT

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_access_denied_says_so_and_repeats_no_key(refusing: int) -> None:
    with pytest.raises(ObjectStoreError, match=r"ACCESS_DENIED.*allow to put, get, list and delete") as caught:
        require_objects(place_at(refusing, "private"))
    said = f"{caught.value} {caught.value.__cause__}"
    assert not any(KEYS[name] in said for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))


def test_nobody_at_the_address_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    began = time.monotonic()
    with pytest.raises(ObjectStoreError, match="NETWORK_CONNECTION"):
        require_objects(place_at(free_port(), "bucket"))
    assert time.monotonic() - began < 15


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "SILENCE_S", 2.0)
    began = time.monotonic()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(ObjectStoreError, match="Timeout was reached"),
    ):
        require_objects(place_at(silent.getsockname()[1], "silent"))
    assert time.monotonic() - began < 30


def test_the_error_is_the_storages_own_also_as_a_traceback() -> None:
    error = ObjectStoreError("s3://b/p: AWS Error ACCESS_DENIED.")
    assert storage_problem(error) == "s3://b/p: AWS Error ACCESS_DENIED"
    trace = "Traceback …\nsearch_spaces.errors.ObjectStoreError: s3://b/p: AWS Error ACCESS_DENIED.\n"
    assert storage_problem(trace) == "s3://b/p: AWS Error ACCESS_DENIED"
    wrapped = RuntimeError("a task failed")
    wrapped.__cause__ = error
    assert storage_problem(wrapped) == "s3://b/p: AWS Error ACCESS_DENIED"


def test_copies_are_for_their_user_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    place = ObjectUri.read("s3://bucket/sweep")
    make_mirror(place)
    assert place.mirror.is_dir()
    assert place.mirror.parents[2].stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)
    (tmp_path / "paretune-4000000").mkdir()
    with pytest.raises(StorageError, match=r"belongs to another user. Set TMPDIR"):
        make_mirror(place)
