"""What a sweep would run, shown before anything starts: sizes, searched parameters, estimated costs."""

from __future__ import annotations

from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from sweeps.forecast import Plan, Range, StageFigures, describe
from trainables.attack import Threat

__all__ = ["Plan", "describe", "render"]


def render(plan: Plan) -> Table:
    """Return the plan as a table for the terminal: what, and its figures."""
    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    previous = ""
    for label, text in _rows(plan):
        table.add_row(label if label != previous else "", escape(text))
        previous = label
    return table


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield from _search_rows(plan)
    yield from _size_rows(plan)
    yield from _method_rows(plan)
    yield from _attack_rows(plan)
    yield from _resource_rows(plan)


def _search_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    config, search = plan.config, plan.config.search
    known = f"{len(search.known)} known first, " if search.known else ""
    start = f"TPE from trial {search.startup_trials} on" if search.sampler == "tpe" else "drawn at random"
    yield "sweep", f"{config.name or '(unnamed)'}: {search.trials} trials, {known}{start}"
    yield "maximises", " and ".join(config.objectives)
    if search.trials < len(config.methods):
        yield "note", f"{search.trials} trials cannot try all of the {len(config.methods)} methods"
    if not config.domains() and search.trials > 1:
        yield "note", "nothing is searched: the trials differ in their seeds alone"


def _size_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    model, data = plan.model, plan.data
    blocks = f"{model.depth} blocks of width {model.embed_dim} with {model.num_heads} heads"
    yield "model", f"{', '.join(model.names)}: {model.tokens} tokens, {blocks}, {model.parameters} parameters"
    selection = f", {data.selection:,} to choose the epoch" if data.selection else ""
    sizes = f"{data.train:,} training{selection}, {data.validation:,} validation, {data.test:,} test images"
    colours = f"{data.channels} channel{'s' * (data.channels != 1)}"
    yield "data", f"{data.name}: {sizes}; {data.num_classes} classes, {colours}"
    yield "training", f"{plan.epochs} epochs, {plan.steps} steps per trial; {plan.image_passes} image passes in all"


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
    for position, stage in enumerate(plan.stages):
        yield "attacks", _stage_row(stage, later if position else "every trial")
    for stage in plan.test_stages:
        yield "test", _stage_row(stage, f"{attacks.test.trials if attacks.test else 0} of the front")


def _stage_row(stage: StageFigures, trials: str) -> str:
    passes = "unknown" if stage.passes is None else str(stage.passes)
    return f"{stage.label:<10} {trials:<14} {stage.images:>4,} images  {passes}"


def _threat(threat: Threat) -> str:
    return f"{threat.norm}, ε = {threat.epsilon:.4g} ({threat.epsilon * 255:.3g}/255)"


def _resource_rows(plan: Plan) -> Iterator[tuple[str, str]]:
    wanted = plan.config.resources
    share, attack = f"{wanted.cpus:g} CPU, GPU {_gpu(wanted.gpus)}", wanted.evaluation
    yield "resources", f"trainings at once: {wanted.concurrent}; each {share}"
    if plan.config.attacks is not None:
        yield "resources", f"attacks at once: {attack.workers}; each {attack.cpus:g} CPU, GPU {_gpu(attack.gpus)}"
    yield "disk", f"{_size(plan.checkpoint_bytes)} per running trial, {_size(plan.final_bytes)} for all final models"


def _gpu(share: float | str) -> str:
    return share if isinstance(share, str) else f"{share:g}"


def _size(amount: Range) -> str:
    high = amount.high
    for unit in ("B", "kB", "MB", "GB"):
        if high < 1000:
            return f"{high:.3g} {unit}"
        high /= 1000
    return f"{high:.3g} TB"
