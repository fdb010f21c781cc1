"""Attack plans: ready-made ones filled in, and any of them taken apart into the stages that run. Pure but for one file.

AutoAttack, say, becomes APGD-CE, one stage for each target of APGD-T, FAB-T and Square: each is run, stored and pruned
on its own, so that a trial whose bound has fallen behind the front after three targets costs no fourth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweeps.attack_section import AttackPlan, Stage
from sweeps.records import LAUNCHED, PlannedStage, Split
from sweeps.yaml_source import read_yaml
from trainables.attack import Part
from trainables.registry import find

PLANS = Path(__file__).with_name("plans")


def ready_made() -> list[str]:
    """Return the names of the ready-made plans, sorted."""
    return sorted(path.stem for path in PLANS.glob("*.yaml"))


def fill_in(section: Any) -> Any:
    """Return a section ``attacks`` with the values of the ready-made plan that it names, its own values first.

    What is no mapping, or names no such plan, comes back as it is: reading it says what is wrong.
    """
    if not isinstance(section, Mapping) or section.get("plan") not in ready_made():
        return section
    path = PLANS / f"{section['plan']}.yaml"
    values, _ = read_yaml(path.read_text(encoding="utf-8"), str(path))
    own = {key: value for key, value in section.items() if key != "plan"}
    for key, value in values.items():
        merges = key == "test" and isinstance(own.get(key), Mapping)
        own[key] = {**value, **own[key]} if merges else own.get(key, value)
    return own


def planned_stages(
    plan: AttackPlan,
    num_classes: int,
    split_sizes: Mapping[str, int],
    *,
    name: str = LAUNCHED,
    after: Iterable[PlannedStage] = (),
) -> tuple[PlannedStage, ...]:
    """Take a plan apart: on each split first its cascade, then its columns.

    Args:
        split_sizes: images of "validation" and "test".
        name: of the plan.
        after: what is planned already; positions go on from there.
    """
    wanted: dict[Split, tuple[tuple[Stage, ...], int | None]] = {"validation": (plan.stages, plan.images)}
    if plan.test is not None:
        wanted["test"] = (plan.test.stages, plan.test.images)
    before = list(after)
    found: list[PlannedStage] = []
    for split, (stages, images) in wanted.items():
        start = 1 + max((stage.position for stage in before if stage.split == split), default=-1)
        parts = [(stage, part, True) for stage, part in _without_repeats(stages, num_classes)]
        parts += [(stage, part, False) for stage in plan.columns.values() for part in _parts(stage, num_classes)]
        for position, (stage, part, cumulative) in enumerate(parts, start):
            found.append(
                PlannedStage(
                    split=split,
                    position=position,
                    plan=name,
                    column=stage.label,
                    label=f"{stage.label}.{part.label}" if part.label else stage.label,
                    attack=part.attack,
                    config=part.config.plain(),
                    threat=stage.threat.plain(),
                    cumulative=cumulative,
                    images=min(split_sizes[split], images or split_sizes[split]),
                    batch_size=plan.batch_size,
                    seed=plan.seed,
                    keep_images=plan.keep_images,
                    passes=find("attacks", part.attack).passes(part.config, num_classes),
                    surrogate=stage.surrogate,
                )
            )
    return tuple(found)


def _parts(stage: Stage, num_classes: int) -> tuple[Part, ...]:
    found: tuple[Part, ...] = find("attacks", stage.attack).parts(stage.config, num_classes)
    return found or (Part("", stage.attack, stage.config),)


def _without_repeats(stages: Iterable[Stage], num_classes: int) -> Iterator[tuple[Stage, Part]]:
    """Yield the parts of a cascade; one that is there already finds nothing new, so that it is left out."""
    seen = set()
    for stage in stages:
        for part in _parts(stage, num_classes):
            if (part.attack, part.config) not in seen:
                seen.add((part.attack, part.config))
                yield stage, part
