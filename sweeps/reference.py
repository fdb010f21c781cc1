"""The reference of the YAML file, written from the configuration models: ``python -m sweeps.reference``.

Prints docs/configuration.md; a test compares the two, so that the page cannot fall behind the code.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from search_spaces.config import Config
from sweeps.attack_section import AttackSection, TestSection
from sweeps.entries import ParentSection
from sweeps.failures_section import (
    AttackPolicy,
    FailurePolicy,
    FailuresSection,
    MemoryPolicy,
    NodePolicy,
    RepeatedPolicy,
)
from sweeps.resources_section import EvaluationResources, ResourcesSection
from sweeps.sections import ConfirmsSection, SearchSection, StorageSection, TrackingSection
from trainables.config import DataConfig, ModelConfig, MonitorConfig, TrainingConfig
from trainables.registry import Kind, built_in_names, find

HEAD = """# The YAML file

Written by `python -m sweeps.reference` from the configuration models; do not edit.

A file has the sections `model`, `data`, `training`, `parents`, `methods`, `objectives`, `attacks`, `monitor`,
`search`, `resources`, `tracking`, `storage`, `failures`, `plugins`, `notify` and `name`; all are optional
(`confirms` is for `confirm` to write). Numbers may be written as fractions (`2/255`). Relative paths are relative to
the working directory. `--set key=value` replaces a value: `--set methods[1].jasmin.k=0`.

A field of `model`, `training` or a method is **searched** where a domain stands instead of a value; a method's own
fields are searched in their ready-made domain unless the file says otherwise:

| YAML | domain |
|---|---|
| `[0, 4, 8]` or `{choice: [0, 4, 8]}` | one of the values |
| `{uniform: [0, 0.5]}` | a float |
| `{log_uniform: [1e-4, 3e-2]}` | a float, evenly in its logarithm |
| `{int: [2, 12]}` or `{int: [2, 12, 2]}` | an integer (in steps) |
| `search` | the field's ready-made domain |

`objectives` is a list of `clean_acc`, `robust_acc` and, where every method has Robustness Tokens, `feature_cosine`; all
are maximised. `methods` is a list: each trial takes
one entry; an entry is a name, or a mapping of one or more names (a stack) to their fields. `search.known` lists
configurations to try first: `{method: jasmin, jasmin.k: 0, training.learning_rate: 2e-3}`; what one leaves out is
drawn. With `search: grid` these and nothing else are trained, or without any every combination of the listed values;
`search.replicates` trains each of them again with other seeds. `plugins` lists Python files, each with a class named
after the file (`my_method.py`: `MyMethod`). `notify` is a command for the shell when the sweep is finished or its
driver has failed; `PARETUNE_SWEEP`, `PARETUNE_FOLDER` and `PARETUNE_EVENT` (`finished`, `failed`) are in its
environment, and what `status --json` prints is its standard input.

`parents` names models that trials start from, in place of fresh or pretrained weights:

```yaml
parents:
  robust: {methods: {adversarial: {epsilon: 8/255}}, training: {epochs: 40}}
  given: {checkpoint: weights.safetensors}
methods:
  - plain
  - safer: {rho: 0.05}
    start_from: robust
  - plain: {}
    start_from: given
```

The second entry is called `safer@robust`, its parameters `safer@robust/safer.fraction` and so on. A parent is trained
once per sweep, before the first trial is proposed, and shared by all its children; two names with the same
configuration are one training. It is no trial: neither searched, nor attacked, nor counted. Its cost is booked to its
children in equal parts. If it fails for good, the driver stops.
"""

SECTIONS: tuple[tuple[str, type[Config]], ...] = (
    ("model", ModelConfig),
    ("data", DataConfig),
    ("training", TrainingConfig),
    ("parents.NAME", ParentSection),
    ("attacks", AttackSection),
    ("attacks.test", TestSection),
    ("monitor", MonitorConfig),
    ("search", SearchSection),
    ("resources", ResourcesSection),
    ("resources.evaluation", EvaluationResources),
    ("tracking", TrackingSection),
    ("storage", StorageSection),
    ("failures", FailuresSection),
    ("failures.crash, .hang, .exception", FailurePolicy),
    ("failures.node", NodePolicy),
    ("failures.memory", MemoryPolicy),
    ("failures.nan, .checkpoint", RepeatedPolicy),
    ("failures.attack", AttackPolicy),
    ("confirms", ConfirmsSection),
)

EXTENSIONS: tuple[tuple[Kind, str], ...] = (("methods", "Methods"), ("attacks", "Attacks"), ("datasets", "Data sets"))


def render_reference() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    parts += [f"## `{name}`\n\n{_table(config, ())}" for name, config in SECTIONS]
    for kind, title in EXTENSIONS:
        common = DataConfig.model_fields if kind == "datasets" else ()
        parts += [f"## {title}\n", *(_extension(kind, key, tuple(common)) for key in built_in_names(kind))]
    return "\n".join(parts)


def _extension(kind: Kind, key: str, left_out: tuple[str, ...]) -> str:
    found = find(kind, key)
    module = sys.modules[found.__module__].__doc__ or ""
    summary = " ".join(module.split("\n\n")[0].split())
    return f"### `{key}`\n\n{summary}\n\n{_table(found.Config, left_out)}"


def _table(config: type[Config], left_out: tuple[str, ...]) -> str:
    rows = [row for name, row in _rows(config) if name not in left_out]
    if not rows:
        return "No fields of its own.\n"
    head = ("| field | default | allowed, or domain of the search | meaning |", "|---|---|---|---|")
    return "\n".join([*head, *rows, ""])


def _rows(config: type[Config]) -> Iterator[tuple[str, str]]:
    domains = config.domains()
    for name, field in config.model_fields.items():
        value = field.get_default(call_default_factory=True)
        default = "required" if value is PydanticUndefined else f"`{written(value)}`"
        if isinstance(field.default, Config):
            default = "see below"
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        allowed = " or ".join(f"`{choice}`" for choice in choices)
        meaning = re.sub(r"\s+", " ", field.description or "").replace("|", "\\|")
        yield name, f"| `{name}` | {default} | {allowed or domains.get(name, '')} | {meaning} |"


def written(value: Any) -> str:
    """Return a default as YAML would write it, floats with four digits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.stdout.write(render_reference())
