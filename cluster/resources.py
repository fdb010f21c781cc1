"""How much of the machine a trial and an evaluation take, and how many run at once. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass, replace

EVALUATION_GPU_SHARE = 0.25
"""Share of one GPU kept for attacks when `resources` says auto (our choice, until shares are measured)."""


@dataclass(frozen=True)
class Shares:
    """What is running at once. Evaluation has a reserved share of its own, which no trial can take."""

    concurrent: int
    """Trainings at once."""
    trial_cpus: float
    trial_gpus: float
    evaluation_workers: int
    """Evaluations at once while trials train; when training is over they may use everything."""
    evaluation_cpus: float
    evaluation_gpus: float
    largest_gpus: float = 0.0
    """The most of a GPU that one training can have beside the evaluation's share."""

    def grown(self, times: float) -> Shares:
        """Return the shares when each training gets so many times as much: of a GPU, up to a whole one, and without
        GPUs of the cores, up to all that the trainings have; accordingly fewer train at once. times >= 1."""
        if self.trial_gpus:
            gpus = max(self.trial_gpus, min(self.trial_gpus * times, self.largest_gpus))
            fewer = max(1, int(self.concurrent * self.trial_gpus / gpus + 1e-9))
            return replace(self, concurrent=fewer, trial_gpus=gpus)
        cpus = max(self.trial_cpus, min(self.trial_cpus * times, self.concurrent * self.trial_cpus))
        return replace(self, concurrent=max(1, int(self.concurrent * self.trial_cpus / cpus + 1e-9)), trial_cpus=cpus)

    @property
    def draining_workers(self) -> int:
        """Evaluations at once when no trial trains any more: those that fit into the trials' shares."""
        per_trial = self.trial_cpus // self.evaluation_cpus if self.evaluation_cpus else 1
        if self.evaluation_gpus:
            per_trial = min(per_trial, self.trial_gpus // self.evaluation_gpus)
        return max(self.evaluation_workers, self.concurrent * max(1, int(per_trial)))

    def public(self) -> dict[str, float]:
        """Return what one training and one attack get: CPU cores and shares of a GPU."""
        names = ("trial_cpus", "trial_gpus", "evaluation_cpus", "evaluation_gpus")
        return {name: getattr(self, name) for name in names}

    def describe(self) -> str:
        """Return one line for people."""
        trial = f"{self.trial_cpus:g} CPU" + (f", {self.trial_gpus:g} GPU" if self.trial_gpus else "")
        attack = f"{self.evaluation_cpus:g} CPU" + (f", {self.evaluation_gpus:g} GPU" if self.evaluation_gpus else "")
        return f"{self.concurrent} trials at once ({trial} each), {self.evaluation_workers} evaluation ({attack})"


def plan_shares(
    cpus: float,
    gpus: float,
    *,
    concurrent: int | None,
    trial_cpus: float,
    trial_gpus: float | None,
    evaluation_workers: int | None,
    evaluation_cpus: float,
    evaluation_gpus: float | None,
) -> Shares:
    """Decide the shares on a cluster with so many CPUs and GPUs; None means "choose".

    On CPUs a trial takes `trial_cpus` and all of them are used; evaluation comes on top, because it is short and a core
    kept free for it would idle. On GPUs evaluation reserves a part of one device and trials get the rest of it: a share
    of 1 − EVALUATION_GPU_SHARE, one trial per device.
    """
    workers = evaluation_workers or 1
    attack_gpus = evaluation_gpus if evaluation_gpus is not None else (EVALUATION_GPU_SHARE if gpus else 0.0)
    share = trial_gpus if trial_gpus is not None else (1 - EVALUATION_GPU_SHARE if gpus else 0.0)
    by_cpu = max(1, int(cpus // trial_cpus))
    by_gpu = by_cpu if not share else _trials_on_gpus(int(gpus), share, workers * attack_gpus)
    return Shares(
        concurrent=concurrent or max(1, min(by_cpu, by_gpu)),
        trial_cpus=trial_cpus,
        trial_gpus=share,
        evaluation_workers=workers,
        evaluation_cpus=evaluation_cpus,
        evaluation_gpus=attack_gpus,
        largest_gpus=_largest_share(int(gpus), share, workers * attack_gpus),
    )


def shortage(shares: Shares, cpus: float, gpus: float) -> str:
    """Return what a machine or cluster with so many CPUs and GPUs lacks for one training; empty if nothing is lacking.

    CPUs are not looked at where there are no GPUs to wait for: a local Ray is told that it has as many as are needed.
    """
    if not shares.trial_gpus and not shares.evaluation_gpus:
        return ""
    reserved = shares.evaluation_workers * shares.evaluation_gpus
    if reserved <= gpus and (not shares.trial_gpus or _trials_on_gpus(int(gpus), shares.trial_gpus, reserved) >= 1):
        return ""
    needs = f"a training needs {shares.trial_gpus:g} GPU and the attacks {reserved:g} beside"
    return f"{needs}; found {gpus:g} GPU{'' if gpus == 1 else 's'} and {cpus:g} CPUs"


def _largest_share(gpus: int, share: float, reserved: float) -> float:
    """Return the largest share that fits beside the reservation, as `_trials_on_gpus` lays it out."""
    if not gpus or not share:
        return 0.0
    if share > 1:
        return max(share, float(int(gpus - reserved)))
    return max(share, 1 - min(1.0, max(0.0, reserved - (gpus - 1))))


def _trials_on_gpus(gpus: int, share: float, reserved: float) -> int:
    """Count trials that fit beside the reservation; a share up to 1 never spans devices."""
    if share > 1:
        return int((gpus - reserved) // share)
    total = 0
    for _ in range(gpus):
        kept = min(reserved, 1.0)
        reserved -= kept
        total += int((1 - kept + 1e-9) // share)
    return total
