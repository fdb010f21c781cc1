"""Making a sweep: what it needs is fetched and checked, then its folder and its ledger appear with one rename."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cluster.object_store import require_objects
from search_spaces.durable_files import make_folder, name_once, write_whole
from search_spaces.errors import ConfigError, SweepExists
from search_spaces.faults import durable
from search_spaces.object_uri import ObjectUri
from sweeps.attack_plan import planned_stages
from sweeps.config import SweepConfig
from sweeps.disk import require_writable
from sweeps.folder import SweepFolder
from sweeps.images import load_data
from sweeps.lease import Lease
from sweeps.ledger import Ledger, pointer
from sweeps.provenance import describe_environment
from sweeps.records import SweepRecord
from sweeps.rules import data_problems

if TYPE_CHECKING:
    from trainables.dataset import Splits


def create_sweep(
    config: SweepConfig, folder: SweepFolder, say: Callable[[str], None], prior: Sequence[str] = ()
) -> None:
    """Make a sweep's folder and ledger; its existence begins with one rename.

    Args:
        say: takes a line before each thing that has to be fetched, and for what weights leave out.
        prior: names of sweeps in the same storage folder whose finished trials inform the search.
    Raises: SweepExists if the name is taken; DataError or ModelError if the data or the weights cannot be had, or
        the weights do not fit; ConfigurationChanged if a prior sweep asked another question.
    """
    from sweeps.prefetch import check_fit, stage

    require_writable(folder)
    if config.storage.objects is not None:
        require_objects(ObjectUri.read(config.storage.objects))
    if folder.ledger.exists():
        raise SweepExists(
            f"sweep {folder.name!r} exists in {folder.storage}. To go on with it: {folder.resume_command}"
        )
    stage(config, say)
    splits = load_data(config, keep=True)  # the driver that this process becomes asks again
    for note in check_fit(config, splits):
        say(note)
    problems = list(data_problems(config.attacks, config.training, splits, config.parents))
    if problems:
        raise ConfigError(problems)
    create_ledger(config, folder, splits, _filling(config, folder, splits, prior, say))


def _filling(
    config: SweepConfig, folder: SweepFolder, splits: Splits, prior: Sequence[str], say: Callable[[str], None]
) -> Callable[[Ledger], None]:
    """Return what writes the prior knowledge into a new ledger; all of it has been read by then."""
    if not prior:
        return lambda ledger: None
    from sweeps.prior import learn

    plan, sizes = config.attacks, split_sizes(splits)
    stages = planned_stages(plan, splits.num_classes, sizes) if plan is not None else ()
    learned = [learn(folder.storage, name, config, stages, splits.digest(), say) for name in prior]

    def fill(ledger: Ledger) -> None:
        with Lease(ledger):
            for trials in learned:
                ledger.add_prior(trials)

    return fill


def split_sizes(splits: Splits) -> dict[str, int]:
    """Return how many images are in the splits on which models are judged."""
    return {"validation": len(splits.validation.labels), "test": len(splits.test.labels)}


def create_ledger(
    config: SweepConfig, folder: SweepFolder, splits: Splits, fill: Callable[[Ledger], None] = lambda ledger: None
) -> None:
    """Write the frozen configuration and the ledger; the sweep exists from the rename on.

    Args: fill: writes what the ledger holds from the beginning.
    """
    make_folder(folder.root)
    plan = config.attacks
    sizes = split_sizes(splits)
    record = SweepRecord(
        id=str(uuid.uuid4()),
        name=folder.name,
        created_at=time.time(),
        requested=config.trials,
        document=config.document,
        objectives=tuple(config.objectives),
        planned_stages=planned_stages(plan, splits.num_classes, sizes) if plan is not None else (),
        environment=describe_environment(),
        data_digest=splits.digest(),
        num_classes=splits.num_classes,
        split_sizes=sizes,
    )
    folder.point_to_objects(config.storage.objects, record.id)
    with durable("sweep.config") as write:
        write_whole(folder.config, dump_yaml(config.document), write)
    temporary = folder.root / f".ledger.{os.getpid()}.tmp"
    with durable("sweep.ledger") as write:
        for left in folder.root.glob(f"{temporary.name}*"):  # of a launch that was killed: a container's pids repeat
            left.unlink()
        if config.ledger.url is not None:
            temporary.write_text(pointer(config.ledger.url, record.id))
        ledger = Ledger.at(temporary)
        ledger.create(record)
        fill(ledger)
        ledger.close()
        write.torn(temporary)
        try:
            name_once(temporary, folder.ledger, write)
        except FileExistsError as error:
            temporary.unlink()
            raise SweepExists(f"sweep {folder.name!r} was launched by another process at this moment.") from error


def dump_yaml(document: Any) -> str:
    """Write plain data as YAML."""
    import io

    from ruamel.yaml import YAML

    text = io.StringIO()
    YAML().dump(json.loads(json.dumps(document)), text)
    return text.getvalue()


def keep_copy(ledger: Ledger, folder: SweepFolder) -> bool:
    """Write the copy of the configuration again if it is not what the ledger holds; returns whether it was not."""
    text = dump_yaml(ledger.sweep().document)
    if folder.config.exists() and folder.config.read_text() == text:
        return False
    with durable("sweep.config") as write:
        write_whole(folder.config, text, write)
    return True
