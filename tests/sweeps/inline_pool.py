"""In the place of `EvaluationPool`: stages run in this process, one after the other, where Ray would run them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sweeps.live_state import PoolState

if TYPE_CHECKING:
    from sweeps.stage_job import StageJob, StageOutcome


class InlinePool:
    """Judges in this process whatever was submitted, when it is asked what is done."""

    def __init__(self, *_: Any) -> None:
        self.capacity = 1
        self.running: list[StageJob] = []

    @property
    def free(self) -> int:
        return self.capacity - len(self.running)

    @property
    def takes_first_stages(self) -> bool:
        return self.free > 0

    @property
    def busy(self) -> bool:
        return bool(self.running)

    def state(self) -> PoolState:
        return PoolState(self.capacity)

    def submit(self, job: StageJob) -> None:
        self.running.append(job)

    def done(self) -> list[tuple[StageJob, StageOutcome | str]]:
        ended = [(job, self.judge(job)) for job in self.running]
        self.running.clear()
        return ended

    def judge(self, job: StageJob) -> StageOutcome | str:
        """Return what a stage comes to, or the text of its error."""
        from sweeps.stage_job import judge_here

        return judge_here(job, 0.0)

    def keep_to_share(self) -> None: ...

    def use_everything(self) -> None: ...

    def forget(self, number: int) -> None:
        self.running = [job for job in self.running if job.number != number]

    def cancel(self) -> None:
        self.running.clear()
