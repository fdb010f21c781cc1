"""What a sweep would run, shown before anything starts: sizes, searched parameters, estimated costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from cluster.packing import Node
from sweeps.config import SweepConfig
from sweeps.disk import MARGIN_BYTES, free_bytes, in_words
from sweeps.entries import GivenParent
from sweeps.folder import DEFAULT_STORAGE
from sweeps.forecast import Plan, StageFigures, describe
from sweeps.measured_memory import Needs
from sweeps.plan_packing import packing_rows
from sweeps.probing import fitted
from sweeps.resources_section import EvaluationResources, ResourcesSection
from sweeps.wall_time import Measured, conditions, estimate
from sweeps.wall_time import in_words as duration
from trainables.attack import Threat
from trainables.monitor import threat_of

__all__ = ["Plan", "describe", "render"]


def render(
    plan: Plan, storage: Path = DEFAULT_STORAGE, nodes: Sequence[Node] = (), like: Measured | None = None
) -> Table:
    """Return the plan as a table for the terminal: what, and its figures.

    Args:
        storage: where it would run.
        nodes: on which; without any nothing is said of what fits at once, nor of the time.
        like: what a sweep has taken whose seconds the expected time rests on.
    """
    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    previous = ""
    for label, text in (*_rows(plan), *_machine_rows(plan, nodes, like), *_disk_rows(plan, storage)):
        table.add_row(label if label != previous else "", escape(text))
        previous = label
    return table


def _machine_rows(plan: Plan, nodes: Sequence[Node], like: Measured | None) -> Iterator[tuple[str, str]]:
    """Yield what fits on the nodes at once, and how long all of it may take."""
    if not nodes:
        return
    needs = Needs() if like is None else like.needs
    yield from packing_rows(plan.config, nodes, needs)
    if plan.config.resources.problems(nodes):
        return
    if like is None:
        yield "wall time", "not known before something has run: --like NAME takes the seconds of a sweep like this one"
        return
    shares = fitted(plan.config.resources, nodes, needs)
    expected = estimate(plan, shares, like)
    low, high = expected.total.low, expected.total.high
    total = duration(low) if duration(low) == duration(high) else f"{duration(low)} to {duration(high)}"
    attacks = f"; first attacks, beside them, {duration(expected.beside)}; later ones {duration(expected.later)}"
    longest = f"trainings {duration(expected.training.high)}" + (attacks if plan.config.attacks is not None else "")
    yield "wall time", f"about {total} ({longest})"
    pace = f"{1000 * like.seconds_per_image:.2g} ms of training per image and epoch"
    yield "wall time", f"rests on {like.trials} trials of {like.name}, scaled by epochs and images: {pace}"
    if differing := conditions(plan, shares, like):
        yield "wall time", f"the same speed is assumed though {'; '.join(differing)}"
    if expected.unknown:
        yield "wall time", f"without {', '.join(expected.unknown)}, which {like.name} has not run"


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield from _search_rows(plan)
    yield from _size_rows(plan)
    yield from _method_rows(plan)
    yield from _attack_rows(plan)
    yield from _resource_rows(plan)


def _search_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    config = plan.config
    yield "sweep", f"{config.name or '(unnamed)'}: {config.trials} trials, {_order(config)}"
    yield "maximises", " and ".join(config.objectives)
    if config.trials < len(config.methods):
        yield "note", f"{config.trials} trials cannot try all of the {len(config.methods)} methods"
    whole = config.trials if config.grid is None else len(config.grid) * config.search.replicates
    if config.trials < whole:
        yield "note", f"the first {config.trials} of the grid's {whole} trials; leave search.trials out for all of them"
    if not config.domains() and config.trials > 1:
        yield "note", "nothing is searched: the trials differ in their seeds alone"


def _order(config: SweepConfig) -> str:
    """Say where the configurations come from."""
    search = config.search
    if config.grid is not None:
        source = "known configurations" if search.known else "combinations"
        times = f", {search.replicates} times with other seeds" if search.replicates > 1 else ""
        return f"a grid of {len(config.grid)} {source}{times}"
    known = f"{len(search.known)} known first, " if search.known else ""
    return known + (f"TPE from trial {search.startup_trials} on" if search.sampler == "tpe" else "drawn at random")


def _size_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    model, data = plan.model, plan.data
    blocks = f"{model.depth} blocks of width {model.embed_dim} with {model.num_heads} heads"
    yield "model", f"{', '.join(model.names)}: {model.tokens} tokens, {blocks}, {model.parameters} parameters"
    selection = f", {data.selection:,} to choose the epoch" if data.selection else ""
    sizes = f"{data.train:,} training{selection}, {data.validation:,} validation, {data.test:,} test images"
    colours = f"{data.channels} channel{'s' * (data.channels != 1)}"
    yield "data", f"{data.name}: {sizes}; {data.num_classes} classes, {colours}"
    for clause in plan.to_fetch:
        yield "not here", f"{clause}, by `launch` or `prefetch`"
    for sentence in plan.left_out:
        yield "weights", sentence
    yield "training", f"{plan.epochs} epochs, {plan.steps} steps per trial; {plan.image_passes} image passes in all"
    yield from _parent_rows(plan)
    if plan.monitor_passes is not None:
        monitor = plan.config.monitor
        when = "epoch" if monitor.every == 1 else f"{monitor.every} epochs"
        attack = f"PGD-{monitor.steps} on {monitor.images:,} images of two splits every {when}"
        yield "monitor", f"{attack}, {_threat(threat_of(monitor))}; {plan.monitor_passes} passes per trial"


def _parent_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    for parent in plan.parents:
        recipe, children = parent.recipe, ", ".join(parent.children)
        how = f"{recipe.epochs} epochs, {parent.steps} steps, {recipe.optimizer} at {recipe.learning_rate:.3g}"
        yield "parents", f"{parent.label}: {parent.method}, {how}, once before the trials, for {children}"
    for entry in plan.config.parents:
        if isinstance(entry, GivenParent):
            children = ", ".join(e.label for e in plan.config.methods if e.start_from == entry.name)
            yield "parents", f"{entry.name}: {entry.checkpoint}, for {children}"


def _method_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    domains = plan.config.domains()
    shared = {name: d for name, d in domains.items() if name.startswith(("model.", "training."))}
    width = max((len(name) for name in domains), default=0)
    for name, domain in shared.items():
        yield "all methods", f"{name:<{width}}  {domain}"
    for entry in plan.config.methods:
        prefixes = tuple(f"{entry.prefix(method)}." for method in entry.spaces)
        own = {name: domain for name, domain in domains.items() if name.startswith(prefixes)}
        if not own:
            yield f"method {entry.label}", "nothing of its own is searched"
        for name, domain in own.items():
            yield f"method {entry.label}", f"{name:<{width}}  {domain}"


def _attack_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    attacks = plan.config.attacks
    if attacks is None:
        yield "attacks", "none"
        return
    yield "attacks", f"{_threat(attacks.threat)}; estimated passes per trial:"
    later = "possible front" if attacks.evaluate == "front" else "every trial"
    rows = [("attacks", stage, "every trial" if i == 0 else later) for i, stage in enumerate(plan.stages)]
    tested = "every trial" if attacks.tested is None else f"{attacks.tested} of the front"
    rows += [("test", stage, tested) for stage in plan.test_stages]
    width = max(len(_name(stage, attacks.threat)) for _, stage, _ in rows)
    for title, stage, trials in rows:
        passes = "unknown" if stage.passes is None else str(stage.passes)
        yield title, f"{_name(stage, attacks.threat):<{width}}  {trials:<14} {stage.images:>4,} images  {passes}"


def _name(stage: StageFigures, usual: Threat) -> str:
    parts = f", {stage.parts} parts" if stage.parts > 1 else ""
    made_on = f", made on the {stage.surrogate}" if stage.surrogate else ""
    return stage.label + parts + ("" if stage.threat == usual else f", {_threat(stage.threat)}") + made_on


def _threat(threat: Threat) -> str:
    return f"{threat.norm}, ε = {threat.epsilon:.4g} ({threat.epsilon * 255:.3g}/255)"


def _resource_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    wanted = plan.config.resources
    share, attack = f"{wanted.cpus:g} CPU, {_gpu(wanted)}", wanted.evaluation
    yield "resources", f"trainings at once: {wanted.concurrent}; each {share}"
    if plan.config.attacks is not None:
        yield "resources", f"attacks at once: {attack.workers}; each {attack.cpus:g} CPU, {_gpu(attack)}"


def _disk_rows(plan: Plan, storage: Path) -> Iterator[tuple[str, str]]:
    """Yield what the sweep needs at most, and whether that much is free."""
    checkpoints, finals = in_words(plan.checkpoint_bytes.high), in_words(plan.final_bytes.high)
    yield "disk", f"{checkpoints} per running trial, {finals} for all final models"
    kept = f", {in_words(plan.image_bytes)} for kept images" if plan.image_bytes else ""
    records = f"{in_words(plan.record_bytes)} for ledger, logs and MLflow"
    yield "disk", f"at most {in_words(plan.verdict_bytes)} for verdicts{kept}; about {records}"
    free, needed = free_bytes(storage), plan.total_bytes + MARGIN_BYTES
    where = f"{in_words(free)} free in {storage}"
    verdict = "enough" if free >= needed else f"too little: the sweep may need {in_words(needed)} and would stop"
    yield "disk", f"{where}: {verdict}"


def _gpu(wanted: ResourcesSection | EvaluationResources) -> str:
    if wanted.memory_gb is not None:
        return f"{wanted.memory_gb:g} GB of GPU memory"
    return f"GPU {wanted.gpus if isinstance(wanted.gpus, str) else f'{wanted.gpus:g}'}"
