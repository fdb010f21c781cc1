"""What a confirmation says: the rows and sentences that terminal, report.html and report.md share, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from sweeps.confirm_cost import SUGGESTED_SEEDS
from sweeps.confirmation import DRAWS, FIGURES, Confirmed, Estimate
from sweeps.confirmed import Confirming
from sweeps.snapshot import ABSENT, Snapshot, accuracy


def confirmation_rows(confirming: Confirming) -> list[dict[str, Any]]:
    """Return the table, two rows for each configuration: clean and robust."""
    if confirming.result is None:
        return []
    return [
        {
            "number": row.number,
            "method": (confirming.methods or {}).get(row.number, ("", ""))[0],
            "searched": (confirming.methods or {}).get(row.number, ("", ""))[1],
            "first": place == 0,
            "seeds": row.seeds,
            "figure": name.removesuffix("_acc"),
            "selected": accuracy(row.selected.get(name)),
            "validation": with_spread(row.estimates[name, "validation"]),
            "test": with_spread(row.estimates[name, "test"]),
            "interval": interval(row.estimates[name, "test"]),
            "place": place_of(row),
        }
        for row in confirming.result.rows
        for place, name in enumerate(FIGURES)
    ]


def with_spread(found: Estimate) -> str:
    """Return ``0.912 ± 0.004``: mean and standard deviation over the seeds."""
    return f"{found.mean:.3f}" + ("" if found.std is None else f" ± {found.std:.3f}")


def interval(found: Estimate, sign: str = "") -> str:
    """Return ``[0.872, 0.941]``, or a dash. Args: sign: ``+`` for differences."""
    return ABSENT if found.low is None or found.high is None else f"[{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def place_of(row: Confirmed) -> str:
    """Say whether a configuration keeps its place, and how sure that is: ``kept, 83 %``."""
    share = "" if row.keeps is None else f", {row.keeps:.0%}".replace("%", " %")
    return f"{'kept' if row.on_front else 'lost'}{share}"


def confirmation_sentences(confirming: Confirming) -> list[str]:
    """Say what was done, what is missing, how good the selection was to itself, and what the figures rest on."""
    lines = [_what(confirming)]
    if (missing := _missing(confirming)) is not None:
        lines.append(missing)
    result = confirming.result
    if result is None:
        return lines
    kept = [row.number for row in result.rows if row.on_front]
    lines.append(
        f"{len(kept)} of {len(result.rows)} keep their place: they are on the front of the means on test images. The "
        "share beside it: in how many draws of seeds and images."
    )
    lines.append(
        _differences("Optimism of the selection (its figures minus the new seeds', validation)", result.optimism)
    )
    if confirming.parents:
        lines.append("Seeds that start from one parent share its luck, which no ± here contains.")
    lines.append(_differences("Validation minus test images, new seeds", result.shift))
    lines.append(
        f"±: standard deviation over seeds (n − 1). []: 95 %, two-level bootstrap ({DRAWS:,} draws): seeds within a "
        "configuration, test images once for all. With few seeds a plain bootstrap is far too narrow, so that it is "
        "widened to Student's t; two seeds still say very little."
    )
    return lines


def _what(confirming: Confirming) -> str:
    if not confirming.frozen:
        return f"{confirming.name}: {confirming.state}."
    images, sizes = confirming.images or {}, confirming.sizes or {}
    judged = f"{images.get('test', 0):,} test images are attacked, clean is of all {sizes.get('test', 0):,}"
    parents = ", what they start from once for all of them" if confirming.parents else ""
    count = len(confirming.frozen)
    return (
        f"{confirming.name} trains the front of {confirming.sweep} again ({count} configuration{'s' * (count != 1)} × "
        f"{confirming.seeds} new seed{'s' * (confirming.seeds != 1)}{parents}): {judged}. Search: the one seed that "
        "was selected."
    )


def _missing(confirming: Confirming) -> str | None:
    if not confirming.frozen or confirming.is_whole:
        return None
    failed = f", {confirming.failed} failed" if confirming.failed else ""
    again = ", `confirm` goes on with it" if confirming.state in ("interrupted", "paused") else ""
    return (
        f"Not whole: {confirming.finished} of {confirming.expected} trainings have all their figures{failed} "
        f"({confirming.state}{again}); what follows is of these."
    )


def _differences(what: str, found: Mapping[str, Estimate]) -> str:
    parts = [
        f"{name.removesuffix('_acc')} {estimate.mean:+.3f}"
        + (f" {interval(estimate, '+')}" if estimate.low is not None else "")
        for name, estimate in found.items()
    ]
    return f"{what}: {', '.join(parts)}."


def confirmation_table(confirming: Confirming) -> Table | None:
    """Return the table for a terminal of 100 columns; None before anything has its figures."""
    rows = confirmation_rows(confirming)
    if not rows:
        return None
    title = f"Confirmation of {confirming.sweep} with new seeds"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("trial", justify="right")
    table.add_column("method", overflow="fold", min_width=8)
    table.add_column("seeds", justify="right")
    for name in ("", "search", "validation", "test", "test [95 %]", "place"):
        table.add_column(name, justify="left" if name in ("", "place") else "right", no_wrap=True)
    for row in rows:
        own = (str(row["number"]), row["method"], str(row["seeds"])) if row["first"] else ("", "", "")
        figures = (row["figure"], row["selected"], row["validation"], row["test"], row["interval"])
        table.add_row(*own, *figures, row["place"] if row["first"] else "")
    return table


def markdown_rows(confirming: Confirming) -> list[Sequence[str]]:
    """Return the table for report.md, heads first."""
    names = ("trial", "method", "searched", "seeds", "figure", "search", "validation", "test", "test [95 %]", "place")
    keys = ("number", "method", "searched", "seeds", "figure", "selected", "validation", "test", "interval", "place")
    return [names, ("---",) * len(names), *([str(row[key]) for key in keys] for row in confirmation_rows(confirming))]


def single_seed_note(snapshot: Snapshot) -> str | None:
    """Say that a search's figures are of one seed each and were selected; None where that is not so."""
    if snapshot.sweep.document.get("confirms") or not snapshot.front:
        return None
    made = snapshot.confirming
    command = f"`confirm {snapshot.sweep.name} --seeds {SUGGESTED_SEEDS}`"
    again = "see Confirmation." if made else f"{command} trains it again."
    return f"The front's figures are of one seed each, chosen among many, and therefore too good on average: {again}"
