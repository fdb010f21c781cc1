"""Places in an object store: what may stand in one, and that keys may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_spaces.object_uri import ObjectUri, is_object_uri


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket",
        "s3://bucket/a/b",
        "gs://bucket/a",
        "s3://bucket/a?region=eu-west-1",
        "s3://bucket/a?endpoint_override=127.0.0.1:9000&scheme=http&region=us-east-1",
    ],
)
def test_a_place_is_written_as_it_was_read(text: str) -> None:
    assert str(ObjectUri.read(text)) == text


def test_a_name_is_joined_before_the_options() -> None:
    place = ObjectUri.read("s3://bucket/a/?scheme=http")
    assert str(place.joined("s-12345678", "trials/00007")) == "s3://bucket/a/s-12345678/trials/00007?scheme=http"
    assert place.joined("b").mirror.parts[-3:] == ("bucket", "a", "b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("runs/objects", "begin with s3:// or gs://; found 'runs/…'"),
        ("s3:/bucket", "found 's3:/…'"),
        ("s3:bucket", "begin with s3://"),
        ("user:KEY@host/bucket", "found '…'"),
        ("ftp://bucket/a", "begin with s3://"),
        ("s3://", "found no bucket"),
        ("s3:///a", "found no bucket"),
        ("s3://bucket//a", "or a gap"),
        ("s3://KEY:SECRET@bucket/a", "AWS_ACCESS_KEY_ID"),
        ("s3://KEY@bucket/a", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket/a?access_key=KEY&secret_key=SECRET", "region, scheme, endpoint_override are allowed"),
        ("gs://bucket/a?region=x", "scheme, endpoint_override are allowed"),
        ("s3://bucket/a#SECRET", "are allowed"),
    ],
)
def test_what_is_wrong_is_said_and_no_key_is_repeated(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        ObjectUri.read(text)
    assert "SECRET" not in str(caught.value)
    assert "KEY:" not in str(caught.value)


def test_only_texts_with_a_known_scheme_are_objects() -> None:
    assert is_object_uri("s3://bucket/a")
    assert is_object_uri("gs://bucket/a")
    assert not is_object_uri("/runs/s3/trials")
    assert not is_object_uri(Path("s3://bucket/a"))
