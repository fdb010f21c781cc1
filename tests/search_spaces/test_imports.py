from __future__ import annotations

import gc

import pytest

from search_spaces.imports import quick_imports


def test_no_garbage_is_collected_during_an_import_and_again_afterwards() -> None:
    def import_badly() -> None:
        with quick_imports():
            assert not gc.isenabled()
            raise ImportError("no such library")

    with pytest.raises(ImportError):
        import_badly()
    assert gc.isenabled()


def test_who_has_switched_collection_off_finds_it_off() -> None:
    gc.disable()
    try:
        with quick_imports():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
