"""Draws a `LiveState` as a few lines of text that fit a terminal: a pure function of the state and of the room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from sweeps.live_state import Attack, LiveState, Member, Training
from sweeps.pace import in_clock, in_words
from sweeps.snapshot import PALETTE

BAR, FULL, REST = 24, "━", "╌"
SMALL_BAR = 12
MARGIN = 10
"""Width of the names of the block's parts: "attacking "."""
Item = TypeVar("Item")


def render_block(state: LiveState, width: int = 80, height: int = 24) -> Text:
    """Draw the block, at most `width` characters wide and `height` lines high; width >= 40, height >= 8."""
    colours = {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(state.labels)}
    head, foot = _head(state), [*_pace(state), *_notes(state, width)]
    front = _front(state, colours, width)
    room = max(2, height - 1 - len(foot) - len(front))
    trainings, attacks = share_room(len(state.trainings), len(state.attacks) + bool(state.to_judge), room)
    labels = [t.label for t in state.trainings] + [a.label for a in state.attacks]
    column = min(max(map(cell_len, labels), default=0), max(8, width - 60))
    names = ("training", "attacking") if state.alive else ("to train", "to attack")
    trained, attacked = cut(state.trainings, trainings), cut(_attack_rows(state), attacks)
    lines = [
        head,
        *_nothing_yet(state),
        *_part(names[0], trained, lambda item: _training(item, colours, column)),
        *_part(names[1], attacked, lambda item: _attack(item, colours, column)),
        *front,
        *foot,
    ]
    block = Text("\n", no_wrap=True, end="").join(_fitted(line, width) for line in lines[:height])
    block.no_wrap = True
    return block


def share_room(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many lines each of two lists gets of the room: what one does not need goes to the other.

    The first gets two thirds if both want more: share_room(40, 40, 12)  # (8, 4)
    """
    mine = min(first, max(room * 2 // 3, room - second))
    return mine, min(second, room - mine)


def cut(items: Sequence[Item], lines: int) -> list[Item | str]:
    """Return what fits into so many lines, the last of them "… and 12 more" if not everything does."""
    if len(items) <= lines:
        return list(items)
    kept = max(0, lines - 1)
    return [*items[:kept], f"… and {len(items) - kept} more"] if lines else []


def plain_line(state: LiveState) -> str:
    """Return the state in one line for a log: ``12 of 20 done, 3 training, 2 attacked, about 4 min left``."""
    parts = [f"{state.closed} of {state.requested} done"]
    if running := sum(t.started for t in state.trainings):
        parts.append(f"{running} training")
    if attacked := len({a.number for a in state.attacks}):
        parts.append(f"{attacked} attacked")
    if state.to_judge:
        parts.append(f"{state.to_judge} to be attacked")
    if state.failed:
        parts.append(f"{len(state.failed)} failed")
    return ", ".join([*parts, in_words(state.left)])


def _head(state: LiveState) -> Text:
    done = round(BAR * state.closed / max(1, state.requested))
    text = Text(FULL * done, "green").append(REST * (BAR - done), "dim")
    text.append(f"  {state.closed} of {state.requested} trials done", "bold")
    if state.elapsed_s is not None:
        text.append(f"   {in_clock(max(0.0, state.elapsed_s))}")
    if state.alive and (state.closed < state.requested or state.attacks or state.trainings):
        text.append(f"   {in_words(state.left)}")
    return text


def _part(name: str, rows: list[Item | str], draw: Callable[[Item], Text]) -> list[Text]:
    """Draw a part of the block, its name before the first line."""
    lines = []
    for position, row in enumerate(rows):
        start = Text(set_cell_size(name if position == 0 else "", MARGIN), "bold")
        lines.append(start.append(row, "dim") if isinstance(row, str) else start.append_text(draw(row)))
    return lines


def _nothing_yet(state: LiveState) -> list[Text]:
    """Say what one waits for before anything has begun."""
    if state.trainings or state.attacks or state.to_judge or state.closed or not state.alive:
        return []
    return [Text(set_cell_size("training", MARGIN), "bold").append("the first workers are starting", "dim")]


def _training(item: Training, colours: dict[str, str], column: int) -> Text:
    text = _named(item.name, item.label, colours, column)
    if not item.started:
        return text.append("waits", "dim")
    if item.planned:
        done = min(SMALL_BAR, round(SMALL_BAR * item.epochs / item.planned))
        text.append(FULL * done, "green").append(REST * (SMALL_BAR - done), "dim").append(" ")
    text.append(f"epoch {item.epochs}/{item.planned}" if item.planned else f"{item.epochs} epochs")
    shown = ("clean", "robust") if "clean" in item.figures else ("loss",)
    for name in (name for name in shown if name in item.figures):
        text.append(f"  {name} ", "dim").append(f"{item.figures[name]:.3f}")
    return text.append("  stopping", "yellow") if item.stopping else text


def _attack_rows(state: LiveState) -> list[Attack | str]:
    waiting = [f"{state.to_judge} trained, waiting for the first attack"] if state.to_judge else []
    return [*state.attacks, *waiting]


def _attack(item: Attack, colours: dict[str, str], column: int) -> Text:
    text = _named(str(item.number), item.label, colours, column).append(item.what)
    if item.shards is not None:
        done, running, count = item.shards
        if not done and not running:
            text.append("  waits", "dim")
        elif count > 1:
            text.append(f"  {done} of {count} shards done", "dim")
    return text


def _named(name: str, label: str, colours: dict[str, str], column: int) -> Text:
    text = Text(f"{name:>4} " if label else f"{name}  ")
    if label:
        text.append(set_cell_size(label, column) + "  ", colours.get(label, ""))
    return text


def _front(state: LiveState, colours: dict[str, str], width: int, lines: int = 2) -> list[Text]:
    """Draw the members of the front that fit into so many lines, by falling first objective."""
    start = set_cell_size("front", MARGIN)
    if not state.front:
        return [Text(start, "bold").append("no trial is finished yet", "dim")]
    names = "/".join(name.removesuffix("_acc").replace("feature_cosine", "cosine") for name in state.objectives)
    bounds = "" if all(member.exact for member in state.front) else ", ≤: attacks to come"
    header = f"{len(state.front)} of {state.finished} finished ({names}{bounds})  "
    rows, used, shown = [Text(start, "bold").append(header, "dim")], MARGIN + len(header), 0
    for member in state.front:
        entry = _member(member, colours)
        if used + entry.cell_len > width - (8 if len(rows) == lines else 0) and used > MARGIN:
            if len(rows) == lines:
                break
            rows.append(Text(" " * MARGIN))
            used = MARGIN
        rows[-1].append_text(entry)
        used += entry.cell_len
        shown += 1
    if shown < len(state.front):
        rows[-1].append(f"+{len(state.front) - shown}", "dim")
    return rows


def _member(member: Member, colours: dict[str, str]) -> Text:
    *others, last = (f"{value:.3f}" for value in member.values)
    values = "/".join([*others, last if member.exact else f"≤{last}"])
    return Text(f"{member.number} ").append(member.label, colours.get(member.label, "")).append(f" {values}  ")


def _pace(state: LiveState) -> list[Text]:
    if state.pace is None or not state.trainings:
        return []
    per_minute = 60 * state.pace.epochs_per_s
    text = f"{per_minute:.0f} epochs a minute" if per_minute >= 3 else f"{60 * per_minute:.1f} epochs an hour"
    if state.pace.images_per_s:
        text += f", {_round(state.pace.images_per_s):,} training images a second"
    return [Text(set_cell_size("pace", MARGIN), "bold").append(text)]


def _round(value: float) -> int:
    """Leave two digits: 5,234 → 5,200."""
    size = 10 ** max(0, len(str(int(value))) - 2)
    return int(round(value / size) * size)


def _notes(state: LiveState, width: int) -> list[Text]:
    notes = []
    if state.failed:
        few = state.failed[-2:]
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(kind for _, kind in state.failed).most_common())
        named = ", ".join(f"trial {number} ({kind})" for number, kind in few)
        notes.append(f"{len(state.failed)} failed: {named if len(state.failed) <= len(few) else kinds}")
    if state.failed_attacks:
        notes.append(f"attacks failed on {state.failed_attacks} trial{'s' * (state.failed_attacks > 1)}")
    if state.stopped:
        notes.append(f"{state.stopped} stopped")
    if state.asked:
        notes.append(f"asked for: {', '.join(state.asked)}")
    return [Text(set_cell_size("notes", MARGIN), "bold").append("; ".join(notes), "yellow")] if notes else []


def _fitted(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line
