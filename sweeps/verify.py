"""Verification: the adversarial images that a trial's attacks kept, replayed against its weights."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.errors import LedgerError, ObjectiveMissing, SweepError
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import StageRecord
from trainables.assessment import AttackQuestion, Subject, Verification, verify
from trainables.attack import Threat
from trainables.config import TrialConfig, attack_config_type
from trainables.registry import load_plugins
from trainables.remote_verdicts import open_verdicts
from trainables.training import default_device
from trainables.trial import load_final
from trainables.trial_folder import fetched_final


@dataclass(frozen=True)
class Replayed:
    """One stage of a trial."""

    stage: StageRecord
    found: Verification


def verify_trial(ledger: Ledger, folder: SweepFolder, number: int) -> list[Replayed]:
    """Replay what every stage of a trial kept: inside the ball, inside [0, 1], and still misclassified?

    Raises: LedgerError if there is no such trial; CheckpointCorrupt if its weights are not whole; ObjectiveMissing if
        weights or images are not those that were judged; SweepError if no adversarial image was kept.
    """
    sweep, trial = ledger.sweep(), ledger.trial(number)
    done = [stage for stage in ledger.stages(number) if stage.state == "done" and stage.digest]
    if not done:
        raise LedgerError(f"trial {number} is {trial.state}, and no attack on it has finished.")
    load_plugins(TrialConfig.model_validate(trial.config).plugins)
    device = default_device()
    model, splits, meta = load_final(fetched_final(folder.trial_place(number)), device=device)
    if meta["weights_digest"] != trial.weights_digest or splits.digest() != sweep.data_digest:
        raise ObjectiveMissing(f"trial {number}: weights or images are not those that were judged.")
    planned = {(stage.split, stage.position): stage for stage in sweep.planned_stages}
    store = open_verdicts(folder.verdict_place)
    found = []
    for record in done:
        stage = planned[record.split, record.position]
        images = splits.validation if stage.split == "validation" else splits.test
        subject = Subject(model, images, meta["weights_digest"], f"{sweep.data_digest}/{stage.split}", device)
        config = attack_config_type(stage.attack).model_validate(dict(stage.config))
        question = AttackQuestion(stage.attack, config, Threat(**stage.threat), stage.seed, stage.surrogate)
        found.append(Replayed(record, verify(subject, question, store, batch_size=stage.batch_size)))
    if not any(replayed.found.kept for replayed in found):
        again = folder.command("evaluate")
        raise SweepError(
            f"no adversarial image of trial {number} was kept. Write keep_images: true into attacks before a launch, "
            f"or into a plan for this trial: {again} --trials {number} --plan FILE."
        )
    return found
