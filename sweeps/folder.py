"""Where a sweep keeps its files; no path is formatted anywhere else.

::

    runs/                       the storage folder (--storage)
    ├── mlflow.db, mlartifacts/ MLflow's default store, shared by the sweeps of this storage
    └── NAME/
        ├── sweep.yaml          frozen copy of the configuration
        ├── ledger.db           the one truth
        ├── driver.log          everything that Ray, Tune, Optuna and MLflow have to say
        ├── report.html, report.md
        ├── trials/00007/       checkpoints, final weights and log of a trial
        ├── parents/00001/      the same of a model that trials start from
        ├── requests/           what other terminals ask of the driver, one file each until it is granted
        ├── verdicts/           one file per attack stage, named by the digest of what it judged
        └── scratch/            Ray Tune's own files; nothing in it is ever read again

With ``storage.objects`` trials/, parents/ and verdicts/ are in an object store instead, by the same names below the URI
that the one-line file ``objects`` in this folder holds.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from search_spaces.durable_files import write_whole
from search_spaces.errors import ConfigError, Problem, SweepNotFound
from search_spaces.faults import durable
from search_spaces.object_uri import ObjectUri

DEFAULT_STORAGE = Path("runs")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "a name is 1 to 64 letters, digits, dots, underscores and hyphens, and starts with a letter or digit"


@dataclass(frozen=True)
class SweepFolder:
    """The files of one sweep."""

    storage: Path
    name: str

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise ConfigError([Problem(("name",), f"{NAME_RULE}; found {self.name!r}.")])

    @classmethod
    def existing(cls, storage: Path, name: str) -> SweepFolder:
        """Return the folder of a sweep that was launched; SweepNotFound lists what there is."""
        folder = cls(storage.resolve(), name)
        if not folder.ledger.is_file():
            there = sorted(p.parent.name for p in storage.glob("*/ledger.db"))
            known = f"sweeps there: {', '.join(there)}" if there else "there are no sweeps"
            close = difflib.get_close_matches(name, there, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else "Is --storage right?"
            raise SweepNotFound(f"no sweep {name!r} in {storage} ({known}). {hint}")
        return folder

    @property
    def root(self) -> Path:
        return self.storage / self.name

    @property
    def config(self) -> Path:
        return self.root / "sweep.yaml"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def log(self) -> Path:
        return self.root / "driver.log"

    @property
    def report_html(self) -> Path:
        return self.root / "report.html"

    @property
    def report_markdown(self) -> Path:
        return self.root / "report.md"

    @property
    def verdicts(self) -> Path:
        return self.root / "verdicts"

    @property
    def objects_file(self) -> Path:
        return self.root / "objects"

    @property
    def objects(self) -> ObjectUri | None:
        """Where in an object store the sweep's trials and verdicts are; None if they are in this folder."""
        try:
            return ObjectUri.read(self.objects_file.read_text().strip())
        except FileNotFoundError:
            return None

    def point_to_objects(self, objects: str | None, sweep_id: str) -> None:
        """Write where the sweep's objects are, unless it stands there already.

        Args: objects: `storage.objects`; sweep_id: part of the place, because names are given again.
        """
        place = None if objects is None else ObjectUri.read(objects).joined(f"{self.name}-{sweep_id[:8]}")
        if place == self.objects:
            return
        with durable("sweep.objects") as write:
            if place is None:  # of a launch that was killed
                self.objects_file.unlink()
            else:
                write_whole(self.objects_file, f"{place}\n", write)

    @property
    def verdict_place(self) -> str:
        """Where verdicts are: a path, or the URI of objects."""
        return self._place(self.verdicts)

    def trial_place(self, number: int) -> str:
        """Return where a trial's or a parent's files are: a path, or the URI of objects."""
        return self._place(self.trial(number))

    def _place(self, path: Path) -> str:
        objects = self.objects
        return str(path) if objects is None else str(objects.joined(path.relative_to(self.root).as_posix()))

    @property
    def requests(self) -> Path:
        return self.root / "requests"

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    def trial(self, number: int) -> Path:
        """Return the folder of a trial, or by a negative number of a parent: checkpoints, final weights, log."""
        return self.root / ("trials" if number >= 0 else "parents") / f"{abs(number):05d}"

    def trial_log(self, number: int) -> Path:
        """Return the file with everything that a trial has said."""
        return self.trial(number) / "log.txt"

    @property
    def resume_command(self) -> str:
        """The command that goes on with this sweep."""
        return self.command("resume")

    def command(self, name: str) -> str:
        """Return a command of the command line for this sweep."""
        storage = "" if self.storage.resolve() == DEFAULT_STORAGE.resolve() else f" --storage {self.storage}"
        return f"python run_sweep.py {name} {self.name}{storage}"

    @property
    def default_tracking_uri(self) -> str:
        return f"sqlite:///{self.storage.resolve() / 'mlflow.db'}"

    @property
    def default_artifacts(self) -> Path:
        return self.storage.resolve() / "mlartifacts"
