"""The JSON schema of a sweep's YAML file, for editors.

``python -m sweeps.json_schema > docs/schema/sweep.schema.json`` writes it from the configuration models; a test
compares the two. Draft 7, which yaml-language-server understands best. An editor then completes names and fields, shows
what they mean and marks what is no field or out of range. Rules that join two fields (k below the number of tokens,
say) are left to ``run_sweep.py plan``, which has the last word.

Names that no file of the project has are marked unless the document has `plugins`: an editor cannot look into those.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from search_spaces.config import Config, value_types
from search_spaces.domains import Domain
from sweeps.attack_section import AttackSection, TestSection
from sweeps.entries import ParentSection
from sweeps.folder import NAME_PATTERN
from sweeps.parent_reading import PARENT_NAME
from sweeps.reading import COLUMN_NAME
from sweeps.resources_section import ResourcesSection
from sweeps.sections import GeneralSections, SearchSection
from trainables.attack import Surrogate, Threat
from trainables.config import DataConfig, ModelConfig, TrainingConfig
from trainables.registry import Kind, built_in_names, find

Schema = dict[str, Any]

FRACTION = r"^\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?(\s*/\s*[0-9.]+)?\s*$"
"""A number as text: 2/255, 1e-3."""
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
"""Pydantic's names of the limits that stand behind a validator, and the schema's."""
LIMITS = tuple(BOUNDS.values())
DROPPED = ("title", "format")
NULL: Schema = {"type": "null"}


def render_schema() -> str:
    """Return the schema as JSON with a line break at its end."""
    return json.dumps(sweep_schema(), indent=1, ensure_ascii=False) + "\n"


def sweep_schema() -> Schema:
    """Return the schema of a whole document."""
    sections = {
        **{name: _ref(name) for name in ("model", "data", "training", "attacks")},
        "parents": _or_null(_mapping(PARENT_NAME.pattern, _ref("parent")), ParentSection.__doc__),
        "methods": _or_null({"type": "array", "items": _ref("method"), "minItems": 1}, "Every trial takes one entry."),
        **{name: _or_null(schema, schema.get("description")) for name, schema in _fields(GeneralSections).items()},
        "search": _or_null(_search(), SearchSection.__doc__),
        "resources": _or_null(_resources(), ResourcesSection.__doc__),
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A sweep of Paretune",
        "description": "The page docs/configuration.md. What no schema can check, `run_sweep.py plan FILE` does.",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
        "if": {"required": ["plugins"]},
        "else": _only_known_names(),
        "definitions": _definitions(),
    }


def _definitions() -> dict[str, Schema]:
    found = {
        "model": _or_null(_object(_searched(ModelConfig, by_default=False)), ModelConfig.__doc__),
        "training": _or_null(_object(_searched(TrainingConfig, by_default=False)), TrainingConfig.__doc__),
        "data": _data(),
        "parent": _parent(),
        "parent_training": _object(_fields(TrainingConfig)),
        "parent_method": _named("methods", "parent_method", {}),
        "method": _named("methods", "method", {"start_from": {"type": "string", "description": "A parent's name."}}),
        "attacks": _attacks(),
        "stage": _named("attacks", "attack", {}) | {"maxProperties": 1},
        "column": _named("attacks", "attack", _fields(Threat) | {"surrogate": {"enum": [None, *get_args(Surrogate)]}}),
    }
    for name in built_in_names("methods"):
        config = find("methods", name).Config
        found[f"method.{name}"] = _or_null(_object(_searched(config, by_default=True)), _summary("methods", name))
        found[f"parent_method.{name}"] = _or_null(_object(_fields(config)), _summary("methods", name))
    for name in built_in_names("attacks"):
        settings = _object(_fields(find("attacks", name).Config))
        found[f"attack.{name}"] = _or_null(settings, _summary("attacks", name))
    for name in built_in_names("datasets"):
        config = find("datasets", name).Config
        needed = [field for field, info in config.model_fields.items() if info.is_required()]
        found[f"data.{name}"] = _object(_fields(config)) | {
            "required": needed,
            "description": _summary("datasets", name),
        }
    return found


def _data() -> Schema:
    """Return the section data: its name decides which fields it has."""
    names = built_in_names("datasets")
    default = DataConfig().name
    rules = [
        {"if": {"properties": {"name": {"const": name}}, "required": [] if name == default else ["name"]},
         "then": _ref(f"data.{name}")}
        for name in names
    ]  # fmt: skip
    name = {**_fields(DataConfig)["name"], "anyOf": [{"enum": names}, {"type": "string"}]}
    return _or_null({"type": "object", "properties": {"name": name}, "allOf": rules}, "The images, and their splits.")


def _parent() -> Schema:
    fields = _fields(ParentSection)
    fields["methods"] = {"description": fields["methods"]["description"], "allOf": [_ref("parent_method")]}
    fields["training"] = {"description": fields["training"]["description"], "allOf": [_ref("parent_training")]}
    return _object(fields) | {"oneOf": [{"required": ["methods"]}, {"required": ["checkpoint"]}]}


def _attacks() -> Schema:
    fields = _fields(AttackSection)
    cascade = {"type": "array", "items": _ref("stage"), "minItems": 1}
    test = _fields(TestSection)
    test["stages"] = _or_null(cascade, test["stages"]["description"])
    fields["stages"] |= cascade
    fields["columns"] |= _mapping(COLUMN_NAME.pattern, _ref("column"))
    fields["test"] = _or_null(_object(test), TestSection.__doc__)
    return _or_null(_object(fields), "How robust accuracy is measured.")


def _resources() -> Schema:
    return {"anyOf": [_object(_fields(ResourcesSection)), {"enum": ["auto"]}]}


def _search() -> Schema:
    fields = _fields(SearchSection)
    known = {"method": {"type": "string", "description": "The label of an entry of methods: jasmin+adversarial."}}
    fields["known"]["items"] = {"type": "object", "properties": known}
    return {"anyOf": [_object(fields), {"enum": fields["sampler"]["enum"]}]}


def _named(kind: Kind, definition: str, more: Mapping[str, Schema]) -> Schema:
    """Return what takes a name, or a mapping of names to settings; a name that is not listed is a plugin's.

    Args: definition: stands before the names of the definitions of the settings; more: keys that are no names.
    """
    names = built_in_names(kind)
    settings = {name: _ref(f"{definition}.{name}") for name in names}
    return {
        "anyOf": [
            {"enum": names},
            {"type": "string"},
            {"type": "object", "minProperties": 1, "properties": settings | dict(more)},
        ]
    }


def _only_known_names() -> Schema:
    """Return what holds of a document without plugins: every name is one of the project's."""

    def known(kind: Kind, *more: str) -> Schema:
        names = built_in_names(kind)
        return {"anyOf": [{"enum": names}, {"type": "object", "propertyNames": {"enum": [*names, *more]}}]}

    attack, column = known("attacks"), known("attacks", *Threat.model_fields, "surrogate")
    test = {"properties": {"stages": {"items": attack}}}
    attacks = {"stages": {"items": attack}, "columns": {"additionalProperties": column}, "test": test}
    return {
        "properties": {
            "data": {"properties": {"name": {"enum": built_in_names("datasets")}}},
            "methods": {"items": known("methods", "start_from")},
            "parents": {"additionalProperties": {"properties": {"methods": known("methods")}}},
            "attacks": {"properties": attacks},
        }
    }


def _searched(config: type[Config], *, by_default: bool) -> dict[str, Schema]:
    """Return the fields of a section in which any field may hold a value or a domain.

    Args: by_default: whether a field that is left out is searched if it has a domain of its own.
    """
    domains = config.domains()
    fields = _fields(config)
    for name, schema in fields.items():
        types = set(value_types(config, name))
        if not any((get_origin(kind) or kind) in (tuple, list, dict) for kind in types):
            fields[name] = _value_or_domain(schema, types, domains.get(name), by_default=by_default)
    return fields


def _value_or_domain(schema: Schema, types: set[object], own: Domain | None, *, by_default: bool) -> Schema:
    value = {key: part for key, part in schema.items() if key not in ("description", "default")}
    several = {"type": "array", "items": value, "minItems": 1}
    kinds: dict[str, Schema] = {"choice": several}
    number = next((part for part in (value, *value.get("anyOf", ())) if _is_number(part)), None)
    if number is not None and types & {int, float}:
        pair = {"type": "array", "items": _real(number), "minItems": 2, "maxItems": 2}
        kinds |= {"uniform": pair, "log_uniform": pair} if float in types else {}
        kinds["int"] = {"type": "array", "items": _real(number), "minItems": 2, "maxItems": 3}
    domain = _object(kinds) | {"minProperties": 1, "maxProperties": 1}
    said = [schema.get("description", "")]
    if own is not None:
        said.append(f"{'Searched' if by_default else 'If `search` stands here, searched'}: {own}.")
    kept = {} if by_default and own is not None else {"default": schema["default"]} if "default" in schema else {}
    ready = [] if own is None else [{"const": "search"}]
    return {"description": " ".join(filter(None, said)), **kept, "anyOf": [value, *ready, several, domain]}


def _is_number(schema: Schema) -> bool:
    return bool({"integer", "number"} & set(_listed(schema.get("type", ()))))


def _real(schema: Schema) -> Schema:
    """Return the bounds of a domain: numbers, or fractions, inside the field's own limits."""
    return {"type": ["number", "string"], "pattern": FRACTION, **{k: v for k, v in schema.items() if k in LIMITS}}


def _fields(config: type[Config]) -> dict[str, Schema]:
    """Return the schema of every field with its default and description, nested configurations written out."""
    schema = config.model_json_schema()
    fields = {name: _clean(field, schema.get("$defs", {})) for name, field in schema["properties"].items()}
    if config is GeneralSections:
        fields["name"]["pattern"] = f"^{NAME_PATTERN.pattern}$"
        fields["objectives"] |= {"minItems": 1, "uniqueItems": True}
    return fields


def _clean(schema: Schema, nested: Mapping[str, Schema], *, listed: bool = False) -> Schema:
    """Return a schema of pydantic without titles, its limits under their common names, fractions allowed.

    Args: nested: what references lead to; listed: whether it is an entry of a list, which takes no fractions.
    """
    if "$ref" in schema:
        target = _clean(nested[schema["$ref"].rpartition("/")[2]], nested)
        return target | ({"description": schema["description"]} if "description" in schema else {})
    made = {BOUNDS.get(key, key): value for key, value in schema.items() if key not in DROPPED}
    if "description" in made:
        made["description"] = " ".join(made["description"].split())
    if "anyOf" in made:
        made["anyOf"] = [_clean(part, nested) for part in made["anyOf"]]
    if "items" in made:
        made["items"] = _clean(made["items"], nested, listed=True)
    if "properties" in made:
        made["properties"] = {name: _clean(part, nested) for name, part in made["properties"].items()}
    if made.get("type") == "number" and not listed:
        made |= {"type": ["number", "string"], "pattern": FRACTION}
    return made


def _object(fields: Mapping[str, Schema]) -> Schema:
    return {"type": "object", "properties": dict(fields), "additionalProperties": False}


def _mapping(pattern: str, values: Schema) -> Schema:
    return {"type": "object", "propertyNames": {"pattern": f"^{pattern}$"}, "additionalProperties": values}


def _or_null(schema: Schema, description: str | None) -> Schema:
    """Allow null, which is every default; an error inside is then still marked where it stands."""
    said = {} if not description else {"description": " ".join(description.split())}
    if isinstance(schema.get("type"), str):
        return {**schema, **said, "type": [schema["type"], "null"]}
    return {**said, "anyOf": [schema, NULL]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _summary(kind: Kind, name: str) -> str:
    module = sys.modules[find(kind, name).__module__].__doc__ or ""
    return " ".join(module.split("\n\n")[0].split())


def _listed(value: object) -> Iterable[Any]:
    return value if isinstance(value, list) else (value,)


if __name__ == "__main__":
    sys.stdout.write(render_schema())
