"""The editors' schema: it is what the models say, takes what the reader takes, and marks what is plainly wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from search_spaces.errors import ConfigError
from sweeps.config import parse_sweep
from sweeps.json_schema import render_schema, sweep_schema
from sweeps.yaml_source import read_yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docs" / "schema" / "sweep.schema.json"
SWEEPS = sorted([*(ROOT / "sweeps" / "presets").glob("*.yaml"), *(ROOT / "examples").glob("*.yaml")])


@pytest.fixture(scope="module")
def schema() -> Draft7Validator:
    found = sweep_schema()
    Draft7Validator.check_schema(found)
    return Draft7Validator(found)


def read(text: str) -> dict[str, Any]:
    document: dict[str, Any] = read_yaml(text, "s.yaml")[0]
    return document


def test_the_file_is_what_the_configuration_models_say() -> None:
    assert FILE.read_text() == render_schema(), "run: python -m sweeps.json_schema > docs/schema/sweep.schema.json"


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_of_the_project_is_valid_and_names_the_schema(path: Path, schema: Draft7Validator) -> None:
    text = path.read_text()
    assert [error.json_path for error in schema.iter_errors(read(text))] == []
    named = text.splitlines()[0].partition("# yaml-language-server: $schema=")[2]
    assert (path.parent / named).resolve() == FILE


GOOD = [
    "{}",
    "training:",
    "search: grid",
    "model: {depth: [2, 3], drop_path: {uniform: [0, 0.5]}, embed_dim: {int: [12, 48, 12]}, name: [vit_a, vit_b]}",
    "training: {learning_rate: search, weight_decay: 1/1000, epochs: {choice: [1, 2]}, clip_norm: null, flip: [true]}",
    "methods: [plain, {jasmin: }, {jasmin: {k: 0, weight: search}, adversarial: {epsilon: 4/255}}]",
    "attacks: {stages: [pgd, {square: {queries: 10}}], columns: {A: fgsm, B: {pgd: , norm: l2, epsilon: 1/2}}, test: }",
    "parents: {a: {methods: plain}, b: {checkpoint: w.safetensors}}\nmethods: [{plain: , start_from: a}]",
    "plugins: [m.py]\nmethods: [mine, {mine: {x: 1}, jasmin: {}}]\nattacks: {stages: [mine]}\ndata: {name: mine, x: 1}",
    "search: {trials: 3, known: [{method: jasmin, jasmin.k: 3}]}",
    "resources: {gpus: 1/4, concurrent: auto}\nfailures: {nan: {retries: 1}, hang_after_s: 1e3}",
    "data: {name: arrays, path: a.npz, mean: [0.5]}",
]
BAD = [
    ("trainings: {}", "$"),
    ("training: {epoch: 3}", "$.training"),
    ("training: {epochs: 0}", "$.training"),
    ("training: {epochs: true}", "$.training"),
    ("training: {epochs: {uniform: [1, 5]}}", "$.training"),
    ("training: {epochs: {choice: [0, 5]}}", "$.training"),
    ("training: {epochs: search}", "$.training"),
    ("training: {learning_rate: {log_uniform: [1e-3]}}", "$.training"),
    ("training: {learning_rate: {log_uniform: [-1, 1]}}", "$.training"),
    ("training: {learning_rate: {uniform: [1, 2], int: [1, 2]}}", "$.training"),
    ("training: {optimizer: {int: [1, 2]}}", "$.training"),
    ("training: {weight_decay: 1/x}", "$.training"),
    ("methods: []", "$.methods"),
    ("methods: {plain: {}}", "$.methods"),
    ("methods: [jasmni]", "$.methods[0]"),
    ("methods: [plain, {jasmni: {}}]", "$.methods[1]"),
    ("methods: [{jasmin: {K: 3}}]", "$.methods[0]"),
    ("methods: [{jasmin: {aggregation: min}}]", "$.methods[0]"),
    ("plugins: [mine.py]\nmethods: [{mine: {}, jasmin: {K: 3}}]", "$.methods[0]"),
    ("objectives: [clean_acc, clean_acc]", "$.objectives"),
    ("data: {name: cifar11}", "$.data.name"),
    ("data: {path: a.npz}", "$.data"),
    ("data: {name: arrays}", "$.data"),
    ("data: {mean: [1/2]}", "$.data.mean"),
    ("attacks: {stages: [pdg]}", "$.attacks"),
    ("attacks: {stages: [{pgd: {}, fgsm: {}}]}", "$.attacks"),
    ("attacks: {epsilon: 8}", "$.attacks"),
    ("attacks: {columns: {A b: fgsm}}", "$.attacks"),
    ("attacks: {columns: {A: {pgd: {step: 3}}}}", "$.attacks"),
    ("attacks: {test: {image: 3}}", "$.attacks"),
    ("parents: {a: {methods: plain, checkpoint: w.pth}}", "$.parents"),
    ("parents: {1a: {methods: plain}}", "$.parents"),
    ("parents: {a: {methods: {jasmin: {k: [0, 10]}}}}", "$.parents"),
    ("search: {sampler: nsga}", "$.search"),
    ("search: girid", "$.search"),
    ("resources: {concurrent: 0}", "$.resources"),
    ("name: ../out", "$.name"),
]


@pytest.mark.parametrize("text", GOOD)
def test_what_may_be_written_is_valid(text: str, schema: Draft7Validator) -> None:
    assert [error.message for error in schema.iter_errors(read(text))] == []


@pytest.mark.parametrize(("text", "path"), BAD)
def test_what_the_reader_refuses_is_marked_where_it_stands(text: str, path: str, schema: Draft7Validator) -> None:
    marked = [error.json_path for error in schema.iter_errors(read(text))]
    assert marked
    assert all(where == path or where.startswith(path) for where in marked)
    if "plugins" not in text:  # there is no such file
        with pytest.raises(ConfigError):
            parse_sweep(read(text))


def test_a_searched_field_says_what_it_means_its_range_and_its_domain() -> None:
    definitions = sweep_schema()["definitions"]
    weight = definitions["method.jasmin"]["properties"]["weight"]
    assert "λ" in weight["description"]
    assert "Searched: log-uniform" in weight["description"]
    assert weight["anyOf"][0]["minimum"] == 0
    rate = definitions["training"]["properties"]["learning_rate"]
    assert (rate["default"], rate["anyOf"][0]["exclusiveMinimum"]) == (1e-3, 0)
    assert definitions["method"]["anyOf"][0]["enum"][0] == "adversarial"


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(sweep_schema())
    named = {part.partition('"')[0] for part in text.split('"$ref": "#/definitions/')[1:]}
    assert named == sweep_schema()["definitions"].keys()
