"""What of a plan fits on which node and device at once, as rows of the plan's table. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from cluster.packing import Node, Packing, Placement
from cluster.resources import ATTACK, GB, TRAINING, Shares, lay_out
from sweeps.admission import Admission
from sweeps.config import SweepConfig
from sweeps.measured_memory import Needs
from sweeps.memory_classes import classes_of
from sweeps.probing import fitted

TITLE = "packing"
Row = tuple[str, str, str, str, str]
"""Node, device, what is on it, what is left of the device, and of the node's cores."""
HEAD: Row = ("node", "GPU", "on each", "left of each", "CPUs left")


def packing_rows(config: SweepConfig, nodes: Sequence[Node], needs: Needs | None = None) -> Iterator[tuple[str, str]]:
    """Yield the rows of the plan's table: how much runs at once on these nodes, where, and what decides it.

    Args: needs: what was measured of the memory; the layout is for the class that needs most.
    """
    needs = Needs() if needs is None else needs
    if problems := config.resources.problems(nodes):
        for problem in problems:
            yield TITLE, f"not on {_place(nodes)}: {problem}"
        return
    shares = fitted(config.resources, nodes, needs)
    packing = lay_out(shares, nodes)
    words = {TRAINING: "training", ATTACK: "attack" if config.attacks is not None else "kept for attacks"}
    yield TITLE, f"{_place(nodes)}: {_at_once(shares, packing, config)}"
    rows = [HEAD, *layout_rows(packing, nodes, words)]
    if any(node.devices for node in nodes) or len(nodes) > 1:
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
        for row in rows:
            yield TITLE, "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
    for unplaced in packing.unplaced:
        yield "", f"{unplaced.count} of the {words[unplaced.request]}s asked for would wait: {unplaced.why}"
    yield from (("", note) for note in _notes(config, shares, nodes, needs))


def _place(nodes: Sequence[Node]) -> str:
    """Say what there is: "this machine", "3 nodes"; with its GPUs and cores."""
    kinds = Counter(device.kind for node in nodes for device in node.devices)
    cpus = sum(node.cpus for node in nodes)
    has = [f"{count} × {kind}" for kind, count in kinds.items()]
    has += [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"] if math.isfinite(cpus) else []
    where = nodes[0].name if len(nodes) == 1 else f"{len(nodes)} nodes"
    return f"{where} ({', '.join(has)})"


def _at_once(shares: Shares, packing: Packing, config: SweepConfig) -> str:
    """Say how many train and attack at once."""
    trainings = packing.count(TRAINING)
    share = ", ".join(f"{share:g} of {kind}" for kind, share in shares.by_kind.items())
    each = f"{shares.trial_cpus:g} CPU and {share}" if share else _each(shares.trial_cpus, shares.trial_gpus)
    text = f"{trainings} training{'' if trainings == 1 else 's'} at once, {each}"
    if config.attacks is None:
        return text
    attacks = packing.count(ATTACK)
    each = _each(shares.evaluation_cpus, shares.evaluation_gpus)
    return f"{text}; beside them {attacks} attack{'' if attacks == 1 else 's'}, {each}"


def _each(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")


def layout_rows(packing: Packing, nodes: Sequence[Node], words: dict[str, str]) -> list[Row]:
    """Return a row for each run of devices of a node that hold the same; nodes that are alike share theirs."""
    rows: list[Row] = []
    on_node: dict[str, list[Placement]] = {node.name: [] for node in nodes}
    for placement in packing.placements:
        on_node[placement.node].append(placement)
    described = [(node, tuple(_node_rows(node, on_node[node.name], packing, words))) for node in nodes]
    for lines, group in groupby(described, key=lambda one: one[1]):
        alike = [node for node, _ in group]
        name = alike[0].name if len(alike) == 1 else f"{alike[0].name} to {alike[-1].name}"
        rows += [(name if place == 0 else "", *line) for place, line in enumerate(lines)]
    return rows


def _node_rows(
    node: Node, placements: Sequence[Placement], packing: Packing, words: dict[str, str]
) -> Iterator[tuple[str, str, str, str]]:
    cores = packing.cpus_left[node.name]
    left = f"{cores:g} of {node.cpus:g}" if math.isfinite(cores) else "not counted"
    without = [placement for placement in placements if not placement.devices]
    if without or not node.devices:
        yield "none", _contents(without, words), "", left
        left = ""
    held = {device.index: [p for p in placements if device.index in p.devices] for device in node.devices}
    lines = [(d.index, _contents(held[d.index], words), packing.gpus_left[node.name, d.index]) for d in node.devices]
    for (contents, share), group in groupby(lines, key=lambda line: line[1:]):
        indices = [index for index, *_ in group]
        span = str(indices[0]) if len(indices) == 1 else f"{indices[0]}–{indices[-1]}"
        yield span, contents, f"{share:g}", left
        left = ""


def _contents(placements: Sequence[Placement], words: dict[str, str]) -> str:
    """Say what is on one device: "attack 0.25, 3 × training 0.25"; or part of what spans several."""
    counted = Counter((p.request, p.gpus, len(p.devices)) for p in placements)
    parts = []
    for (request, share, spanned), count in counted.items():
        times = f"{count} × " if count > 1 else ""
        amount = f" of {spanned} GPUs" if spanned > 1 else (f" {share:g}" if share else "")
        parts.append(f"{times}{words[request]}{amount}")
    return ", ".join(parts) or "nothing"


def _notes(config: SweepConfig, shares: Shares, nodes: Sequence[Node], needs: Needs) -> Iterator[str]:
    """Yield what decides the shares."""
    wanted = config.resources
    if not shares.trial_gpus:
        return
    if needs and wanted.is_measured:
        yield from _measured(config, shares, nodes, needs)
    elif wanted.is_measured:
        yield (
            f"{shares.trial_gpus:g} GPU is no measurement: `launch` measures each class of trainings before, "
            "and more may train at once then; --like NAME takes what a sweep has measured"
        )
    if sum(len(node.devices) for node in nodes) > 1:
        yield "Ray chooses the devices itself, and may stack trainings on one while another idles"


def _measured(config: SweepConfig, shares: Shares, nodes: Sequence[Node], needs: Needs) -> Iterator[str]:
    """Yield a line for each class: what it needs, which share that is, and how many of it alone would train at once."""
    admission = Admission(config.resources, shares, nodes, needs)
    for of in classes_of(config):
        known = [need for need in needs.of("training", of).values() if need is not None]
        if not known:
            yield f"{of.label}: does not fit on a whole GPU of those that were measured"
            continue
        each = admission.request(of).gpus
        text = (
            ", ".join(f"{s:g} of {k}" if k else f"{s:g} GPU" for k, s in each.items())
            if isinstance(each, Mapping)
            else f"{each:g} GPU"
        )
        yield f"{of.label}: {max(known) / GB:.1f} GB, {text}; {admission.at_once(of)} at once"
