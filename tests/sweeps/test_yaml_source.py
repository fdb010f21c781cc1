"""Reading YAML: plain data with lines, broken files with a place, overrides that say what they did wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from search_spaces.errors import ConfigError, Problem, dotted_path
from sweeps.yaml_source import Source, apply_overrides, read_document, read_yaml

keys = st.text("abcdefgh_", min_size=1, max_size=5)
text = st.text(st.characters(min_codepoint=32, max_codepoint=0x3FF, exclude_categories=("Cc",)), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.floats(-1e6, 1e6) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


def problems_in(text: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "s.yaml")
    return caught.value.problems


def set_in(document: dict[str, Any], *overrides: str) -> dict[str, Any]:
    return apply_overrides(document, Source(), overrides)[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("5.", 5.0),
        (".5", 0.5),
        ("2/255", "2/255"),
        ("0x10", 16),
        ("1_000", 1000),
        ("yes", "yes"),
        ("on", "on"),
        ("True", True),
        ("~", None),
        ("", None),
        ("2024-01-01", "2024-01-01"),
        ("'1'", "1"),
        ("12:30:00", "12:30:00"),
    ],
)
def test_scalars_are_read_as_yaml_1_2_and_come_out_plain(text: str, value: object) -> None:
    data, _ = read_yaml(f"a: {text}", "s.yaml")
    assert data == {"a": value}
    assert type(data["a"]) is type(value)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(keys, values, max_size=4))
def test_what_a_yaml_writer_writes_is_read_back_with_a_line_for_every_key(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any]
) -> None:
    file = tmp_path_factory.mktemp("yaml") / "s.yaml"
    with file.open("w", encoding="utf-8") as stream:
        YAML().dump(document, stream)
    data, lines = read_yaml(file.read_text(encoding="utf-8"), "s.yaml")
    assert data == document
    assert {path[0] for path in lines} == set(document)


def test_every_key_and_entry_knows_its_line() -> None:
    _, lines = read_yaml("a:\n  b: 1\nc:\n  - x\n  - {d: 1,\n     e: 2}\n", "s.yaml")
    named = {dotted_path(path): line for path, line in lines.items()}
    assert named == {"a": 1, "a.b": 2, "c": 3, "c[0]": 4, "c[1]": 5, "c[1].d": 5, "c[1].e": 6}


def test_aliases_and_merge_keys_work_and_explicit_keys_win() -> None:
    data, lines = read_yaml("base: &b {p: 1, q: 2}\nx:\n  q: 3\n  <<: *b\ny: *b\n", "s.yaml")
    assert data["x"] == {"p": 1, "q": 3}
    assert data["y"] == {"p": 1, "q": 2}
    assert lines["x", "q"] == 3


def test_the_first_of_several_merged_mappings_wins() -> None:
    assert read_yaml("x:\n  <<: [{p: 1}, {p: 2, q: 2}]\n", "s")[0] == {"x": {"p": 1, "q": 2}}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: [1\nb: 2", 2, "not valid YAML: while parsing a flow sequence"),
        ("a:\n\t- b", 2, "cannot start any token"),
        ("a: 1\n---\nb: 2", 2, "single document"),
        ("a: *nowhere", 1, "undefined alias"),
        ("a: 1\nb: 2\na: 3", 3, "there twice; first in line 1"),
        ("x: 1\na: .nan", 2, "finite number"),
        ("a: -.inf", 1, "finite number"),
        ("a: 1e999", 1, "finite number"),
        ("? [1, 2]\n: 3", 1, "a key must be text"),
        ("a: !!python/name:os.system x", 1, "is not allowed"),
        ("a:\n  b: !secret {c: 1}", 2, "is not allowed"),
        ("a:\n  <<: 3", 2, "<< takes a mapping"),
    ],
)
def test_a_broken_document_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    (problem,) = problems_in(text)
    assert (problem.source, problem.line) == ("s.yaml", line)
    assert words in problem.message


def test_all_repeated_keys_are_found_at_once() -> None:
    assert [p.where() for p in problems_in("a: {b: 1, b: 2}\nc: 1\nc: 2\n")] == ["s.yaml:1: a.b", "s.yaml:3: c"]


@pytest.mark.parametrize("text", ["a: &x [*x]", "[" * 600])
def test_endless_and_very_deep_documents_are_refused(text: str) -> None:
    (problem,) = problems_in(text)
    assert "nested too deeply" in problem.message


def test_aliases_that_multiply_are_refused_before_they_fill_the_memory() -> None:
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    (problem,) = problems_in("\n".join(["a0: &a0 [x]", *levels]))
    assert "more than" in problem.message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b"# only a comment\n", "an empty file"),
        (b"- a\n- b\n", "expected a mapping"),
        (b"just text", "expected a mapping"),
        (b"\xff\xfe\x00bad", "not a UTF-8 text file"),
        (b"a: \x00", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        read_document(file)
    assert caught.value.problems[0].source == str(file)


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "no.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=words) as caught:
            read_document(path)
        assert caught.value.problems[0].source == str(path)


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: a\r\n")
    assert read_document(file)[0] == {"name": "a"}


def test_overrides_reach_mappings_lists_and_missing_sections() -> None:
    document = {"training": {"epochs": 9}, "methods": ["plain", {"jasmin": {"k": 4}}]}
    changed = set_in(document, "training.epochs=2", "methods[1].jasmin.k=0", "search.trials=4", "model.drop_path=1e-3")
    assert changed == {
        "training": {"epochs": 2},
        "methods": ["plain", {"jasmin": {"k": 0}}],
        "search": {"trials": 4},
        "model": {"drop_path": 1e-3},
    }


def test_an_override_opens_a_bare_name_and_an_empty_section() -> None:
    document = {"attacks": {"stages": ["pgd", {"autoattack": None}]}}
    changed = set_in(document, "attacks.stages[0].pgd.steps=3", "attacks.stages[1].autoattack.steps=10")
    assert changed == {"attacks": {"stages": [{"pgd": {"steps": 3}}, {"autoattack": {"steps": 10}}]}}


def test_an_override_goes_into_a_section_that_is_written_as_one_word() -> None:
    document = {"search": "grid", "resources": "auto"}
    changed = set_in(document, "search.trials=3", "resources.evaluation.workers=2")
    assert changed == {"search": {"sampler": "grid", "trials": 3}, "resources": {"evaluation": {"workers": 2}}}


def test_the_value_of_an_override_is_yaml_and_may_hold_an_equals_sign() -> None:
    assert set_in({}, "a=[1, {b: 2/255}]", "c=", "d=x=y", "e='3'") == {
        "a": [1, {"b": "2/255"}],
        "c": None,
        "d": "x=y",
        "e": "3",
    }


@settings(deadline=None, max_examples=40)
@given(st.lists(keys, min_size=1, max_size=4), st.integers())
def test_an_override_sets_exactly_the_place_it_names(path: list[str], value: int) -> None:
    changed: Any = set_in({"other": {"x": 1}}, f"new_{'.'.join(path)}={value}")
    assert changed.pop("other") == {"x": 1}
    for key in [f"new_{path[0]}", *path[1:]]:
        assert list(changed) == [key]
        changed = changed[key]
    assert changed == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("methods[x]=3", "expected key=value"),
        ("methods[2]=plain", "has 2 entries"),
        ("methods.jasmin=3", "needs a mapping"),
        ("training[0]=3", "needs a list"),
        ("name.first=3", "needs a mapping"),
        ("a=[1", "not valid YAML"),
        ("a={b: 1, b: 2}", "there twice"),
    ],
)
def test_an_impossible_override_is_named_as_it_was_typed(override: str, words: str) -> None:
    document = {"name": "n", "training": {}, "methods": ["plain", "jasmin"]}
    with pytest.raises(ConfigError, match=words) as caught:
        set_in(document, override)
    assert caught.value.problems[0].source == f"--set {override}"


def test_all_impossible_overrides_are_found_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        set_in({}, "a", "b=1", "c[0]=1")
    assert [p.source for p in caught.value.problems] == ["--set a", "--set c[0]=1"]


def test_a_problem_is_located_at_its_key_or_the_nearest_key_above() -> None:
    source = Source("s.yaml", {("a",): 1, ("a", "b"): 2})
    assert source.locate(Problem(("a", "b"), "x")).where() == "s.yaml:2: a.b"
    assert source.locate(Problem(("a", "c", "d"), "x")).where() == "s.yaml:1: a.c.d"
    assert source.locate(Problem(("z",), "x")).where() == "s.yaml: z"


def test_a_problem_in_an_overridden_value_names_the_last_override_that_set_it() -> None:
    _, source = apply_overrides({"a": {"b": 1}}, Source("s.yaml", {("a",): 1}), ["a.b=2", "a={b: 3}", "a.c=4"])
    assert source.locate(Problem(("a", "b"), "x")).source == "--set a={b: 3}"
    assert source.locate(Problem(("a", "c"), "x")).source == "--set a.c=4"
    assert source.locate(Problem(("z",), "x")).source == "s.yaml"


def test_a_key_that_only_an_override_brought_in_is_blamed_on_the_override() -> None:
    _, source = apply_overrides({"a": {"b": 1}}, Source("s.yaml", {("a",): 1}), ["modle.depth=2", "a.c=1"])
    assert source.locate(Problem(("modle",), "unknown key")).where() == "--set modle.depth=2: modle"
    assert source.locate(Problem(("a",), "x")).where() == "s.yaml:1: a"
    assert source.locate(Problem((), "x")).source == "s.yaml"
