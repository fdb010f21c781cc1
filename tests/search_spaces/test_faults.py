"""Every durable write stands inside a point, by reading the sources; and a point does what it says."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from search_spaces import faults
from search_spaces.faults import MODES, WRITES, Moment, durable

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path for package in ("search_spaces", "trainables", "sweeps", "cluster") for path in (ROOT / package).rglob("*.py")
)
SOURCES.append(ROOT / "run_sweep.py")

WRITERS = frozenset(
    """
    write_text write_bytes rename renames unlink removedirs rmdir rmtree touch link symlink hardlink_to symlink_to
    truncate ftruncate copy2 copyfile copytree copyfileobj extractall extract mkstemp mkfifo
    dump save save_file savez savez_compressed savetxt tofile memmap to_csv to_json to_parquet savefig write_html
    write_image imsave FileHandler
    begin commit create_all drop_all executescript
    put_object upload_file delete_object delete_folder open_output_stream
    create_run create_experiment create_registered_model log_batch log_text log_dict log_metric log_metrics log_param
    log_params log_artifact log_artifacts log_figure log_image log_table log_inputs set_tag set_experiment_tag
    set_terminated update_run delete_run delete_tag delete_experiment restore_run restore_experiment rename_experiment
    register_model
    """.split()  # noqa: SIM905
)
"""Calls of these names write, whatever they are called on: files, formats, databases, MLflow's client."""

EXEMPT = {
    ("cluster/render.py", "_as_yaml"): "writes into a text, not into a file",
    ("sweeps/commands/clusters.py", "render_start"): "what the user asked for, from settings that stay",
    ("sweeps/commands/see.py", "export"): "what the user asked for, from a ledger that stays",
    ("search_spaces/faults.py", "_reach"): "the fault itself",
    ("sweeps/evaluate.py", "_Work.run"): "signs of life of shards that have ended",
    ("sweeps/pulse.py", "beat"): "a sign of life, which only a driver that lives listens to",
    ("cluster/authentication.py", "_create"): "Ray's token, of the user and of no sweep; linked when whole",
    ("cluster/authentication.py", "_quiet_stderr"): "writes to nowhere",
    ("cluster/mps.py", "_stop"): "pipes and logs of a daemon that has ended, in this machine's temporary folder",
    ("sweeps/doctor_facts.py", "*"): "trials whether files can be written, and gone again",
    ("cluster/head.py", "*"): "how the head is reached as long as it runs; nobody needs it after a loss of power",
    ("cluster/join.py", "Joining._ending"): "when this node ends, for the processes on it",
    ("cluster/ray_node.py", "*"): "Ray's own files on this node, gone with it",
    ("cluster/object_store.py", "ObjectStore._sink"): "the verb itself: its callers name the point",
    ("cluster/object_store.py", "ObjectStore.check"): "a trial whether objects can be written, and gone again",
    ("cluster/object_store.py", "_write_all"): "a copy of an object, renamed by its callers when whole",
    ("cluster/shared_objects.py", "*"): "a trial whether all nodes reach the same store, and gone again",
    ("sweeps/pulse.py", "_beat_far"): "a sign of life, which only a driver that lives listens to",
    ("sweeps/pulse_board.py", "RemotePulses.prepare"): "signs of life of shards that have ended",
    ("trainables/trial_folder.py", "TrialFolder.append_log"): "the trial's log; nothing reads it back",
    ("trainables/trial_folder.py", "RemoteFolder.fetch"): "copies that the store does not know; it has what counts",
    ("trainables/trial_folder.py", "RemoteFolder.fetch_log"): "a copy of an object",
    ("trainables/trial_folder.py", "RemoteFolder._bring"): "copies of objects, renamed when whole",
    ("trainables/trial_folder.py", "_put_in_place"): "the same",
    ("trainables/trial_folder.py", "_replace"): "a copy of an object, renamed when whole",
    ("trainables/remote_verdicts.py", "RemoteVerdicts._bring"): "a copy of an object, renamed when whole",
    ("cluster/shared_storage.py", "SharedStorage._challenge"): "a trial whether all nodes see it, and gone again",
    ("cluster/shared_storage.py", "SharedStorage.close"): "takes that trial away",
    ("cluster/shared_storage.py", "answer_probe"): "the answer to that",
    ("sweeps/live_block.py", "_fitted"): "cuts a line of text, not a file",
    ("sweeps/disk.py", "require_writable"): "a trial whether anything can be written, and gone again",
    ("sweeps/export.py", "export_optuna"): "what the user asked for, from a ledger that stays; renamed when whole",
    (
        "sweeps/exported_model.py",
        "export_model",
    ): "what the user asked for, from a trial that stays; renamed at the end",
    ("sweeps/methods_reference.py", "*"): "writes the project's documentation",
    ("sweeps/overlay.py", "*"): "rebuilt from the ledgers at any time; renamed when whole",
    ("sweeps/print_figures.py", "*"): "rebuilt from the ledger at any time; renamed when whole",
    ("sweeps/report.py", "*"): "rebuilt from the ledger at any time; renamed when whole",
    ("sweeps/runner.py", "_Drive.run"): "Ray Tune's own files; nothing reads them again",
    ("sweeps/creation.py", "dump_yaml"): "writes into a text, not into a file",
    (
        "trainables/archive.py",
        "*",
    ): "downloads: verified by checksum and renamed under a lock, fetched again if damaged",
}
"""(File, function; * is all of them) → why its writes need no point."""


class Writes(ast.NodeVisitor):
    """Collects the calls that write and stand outside a point: (line, function, what)."""

    def __init__(self) -> None:
        self.strays: list[tuple[int, str, str]] = []
        self._where: list[str] = []
        self._inside = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """A function that takes a Durable can be called inside a point only: who has none cannot give one."""
        every = [*node.args.args, *node.args.kwonlyargs]
        given = any(isinstance(a.annotation, ast.Name) and a.annotation.id == "Durable" for a in every)
        outer, self._inside = self._inside, int(given)
        self._where.append(node.name)
        self.generic_visit(node)
        self._where.pop()
        self._inside = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._where.append(node.name)
        self.generic_visit(node)
        self._where.pop()

    def visit_With(self, node: ast.With) -> None:
        """What `with durable(…) as write, other():` guards begins behind the first item."""
        opened = 0
        for item in node.items:
            self.visit(item)
            if _is_point(item.context_expr):
                self._inside, opened = self._inside + 1, opened + 1
        for statement in node.body:
            self.visit(statement)
        self._inside -= opened

    def visit_Call(self, node: ast.Call) -> None:
        if not self._inside and _is_write(node):
            self.strays.append((node.lineno, ".".join(self._where), ast.unparse(node)))
        self.generic_visit(node)


def _name(node: ast.expr) -> str:
    """The last name of what is called: ``os.replace(…)`` → replace."""
    function = node.func if isinstance(node, ast.Call) else node
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_point(node: ast.AST) -> bool:
    """Whether this is ``durable(…)`` or one of the ledger's transactions, which are made of it."""
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("durable", "self._write", "self._transaction")


def _is_write(call: ast.Call) -> bool:
    name = _name(call)
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name == "open":
        return _opens_for_writing(call, owner)
    if name == "replace":  # of a path: one argument, or the module's two; that of a text has two
        return owner == "os" or (bool(owner) and len(call.args) == 1 and not call.keywords)
    if name in ("copy", "move", "remove", "write"):  # dictionaries, lists and streams have these too
        return owner in ("shutil", "os")
    return name in WRITERS


def _opens_for_writing(call: ast.Call, owner: str) -> bool:
    if owner == "os":
        return ast.unparse(call.args[1]) != "os.O_RDONLY"
    if owner in ("webbrowser", "Image"):
        return False
    place = 0 if owner not in ("", "io", "gzip", "tarfile", "zipfile") else 1  # Path.open has its mode first
    given = call.args[place:] + [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    if not given:
        return False
    return not isinstance(given[0], ast.Constant) or bool(set("wax+") & set(str(given[0].value)))


def strays(source: str) -> list[tuple[int, str, str]]:
    visitor = Writes()
    visitor.visit(ast.parse(source))
    return visitor.strays


def exempt(file: str, function: str) -> str | None:
    return EXEMPT.get((file, function)) or EXEMPT.get((file, "*"))


def named() -> Iterator[str]:
    """The name of every durable write in the sources, in all its places."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _is_point(node):
                if isinstance(node.args[0], ast.Constant):
                    yield str(node.args[0].value)
                else:
                    assert path.name == "ledger.py", f"{path}:{node.lineno}: a durable write is named where it stands"


def test_every_write_of_the_project_stands_inside_a_point() -> None:
    found = []
    for path in SOURCES:
        file = path.relative_to(ROOT).as_posix()
        found += [
            f"{file}:{line}: {what}" for line, where, what in strays(path.read_text()) if exempt(file, where) is None
        ]
    assert not found, "\n".join(["put these inside `with durable(name)` (search_spaces/faults.py):", *found])


def test_every_exemption_is_still_needed() -> None:
    used = set()
    for path in SOURCES:
        file = path.relative_to(ROOT).as_posix()
        used |= {
            key for _, where, _ in strays(path.read_text()) for key in ((file, where), (file, "*")) if key in EXEMPT
        }
    assert used == set(EXEMPT)


@pytest.mark.parametrize(
    "line",
    [
        "Path('x').write_text('y')",
        "path.open('w')",
        "open(path, mode='ab')",
        "open(path, how)",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "os.replace(a, b)",
        "place.replace(target)",
        "place.rename(target)",
        "shutil.rmtree(folder)",
        "path.unlink()",
        "np.savez(file, x=x)",
        "torch.save(state, path)",
        "save_file(weights, path)",
        "json.dump(data, file)",
        "self._writer.begin()",
        "client.log_batch(run, metrics=rows)",
        "self._client.set_terminated(run)",
    ],
)
def test_a_write_outside_a_point_is_found_and_the_same_one_inside_is_not(line: str) -> None:
    assert len(strays(f"def act(path):\n    {line}\n")) == 1
    assert not strays(f"def act(path):\n    with durable('a.b') as write:\n        {line}\n")
    assert not strays(f"def act(path, write: Durable):\n    {line}\n")
    later = f"def act(path):\n    with durable('a.b') as write:\n        def later():\n            {line}\n"
    assert len(strays(later)) == 1, "what a function does later happens outside"
    before = f"def act(path):\n    with {line}, durable('a.b') as write:\n        pass\n"
    assert len(strays(before)) == 1


@pytest.mark.parametrize(
    "line", ["path.open()", "path.open('rb')", "text.replace('a', 'b')", "replace(record, state=1)", "names.copy()"]
)
def test_what_only_reads_is_no_write(line: str) -> None:
    assert not strays(line)


def test_every_point_has_a_place_in_the_sources_and_every_place_a_point() -> None:
    assert set(named()) == set(WRITES)


def test_every_moment_has_a_place_in_the_sources() -> None:
    reached = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _name(node) == "reach" and isinstance(node.args[0], ast.Constant):
                reached.add(node.args[0].value)
    assert reached == set(get_args(Moment))


def test_a_point_that_nobody_knows_is_refused() -> None:
    with pytest.raises(KeyError, match=r"ledger\.forget"):
        durable("ledger.forget")


def test_without_the_variable_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.VARIABLE, raising=False)
    monkeypatch.setattr(faults, "_reached", None)
    with durable("trial.attempt") as write:
        write.torn()


SCRIPT = """
import sys
from pathlib import Path
from search_spaces.faults import durable
for turn in "12":
    with durable("trial.attempt") as write:
        Path(turn).write_text("0123456789")
        write.torn(Path(turn))
        Path(turn).write_text("whole")
"""


@pytest.mark.parametrize(
    ("point", "left"),
    [
        ("trial.attempt:before:1", []),
        ("trial.attempt:torn:1", ["01234"]),
        ("trial.attempt:after:1", ["whole"]),
        ("trial.attempt:torn:2", ["whole", "01234"]),
        ("trial.attempt:after:3", None),
    ],
)
def test_a_process_dies_before_within_or_after_the_write_that_is_named(
    tmp_path: Path, point: str, left: list[str] | None
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), faults.VARIABLE: point}
    ended = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, check=False)
    assert ended.returncode == (0 if left is None else -signal.SIGKILL)
    assert [path.read_text() for path in sorted(tmp_path.iterdir())] == (["whole"] * 2 if left is None else left)


def test_a_write_that_raises_never_counts_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(faults, "_reach", lambda point, file=None: seen.append(point))
    with pytest.raises(OSError, match="full"), durable("verdict.unit"):
        raise OSError("full")
    with durable("verdict.unit") as write:
        write.torn()
    assert seen == ["verdict.unit:before", *(f"verdict.unit:{mode}" for mode in MODES)]
