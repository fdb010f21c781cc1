"""Stages on a real model, without Ray: shards, what the store spares, what is counted, what is refused."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.ending import VARIABLE
from search_spaces.errors import NodeEnding, ObjectiveMissing
from sweeps.stage_job import StageJob, StageOutcome, assemble, judge_here, judge_shard, started
from tests.sweeps import ledgers
from tests.sweeps.stages import real_job, real_stage
from trainables import assessment
from trainables.canonical_passes import CANONICAL_BATCH


def judge_in(shards: int, job: StageJob, order: Iterable[int] | None = None) -> StageOutcome:
    """Judge a stage shard by shard, in that order."""
    return assemble(job, [judge_shard(job, shard, shards) for shard in order or range(shards)], 1.0)


def files(store: Path) -> dict[str, int]:
    """Return the files of a store with the time of their last change."""
    return {str(path.relative_to(store)): path.stat().st_mtime_ns for path in store.rglob("*.npz")}


def test_a_first_stage_says_who_was_correct_and_who_still_is(trained: Any, tmp_path: Path) -> None:
    job = real_job(trained, tmp_path)
    outcome = judge_here(job, 12.5)
    record = outcome.record
    assert (record.state, record.images, record.number, record.attack, record.column) == ("done", 50, 3, "pgd", "pgd")
    assert (record.started_at, record.plan, record.cumulative) == (12.5, "sweep", True)
    assert record.verdicts is not None
    assert record.survivors == record.verdicts.sum()
    assert 0 < record.survivors < record.clean_correct < 50  # type: ignore[operator]
    assert record.config == {**job.stage.config, **job.stage.threat}
    assert record.facts["attacked"] == record.clean_correct == outcome.judged
    assert outcome.split_clean_acc is None
    assert record.forwards is not None
    assert record.backwards is not None
    assert record.passes == record.forwards + 2 * record.backwards


@pytest.mark.parametrize("attack", ["pgd", "apgd_t", "square"])
def test_shards_come_to_what_the_whole_comes_to(trained: Any, tmp_path: Path, attack: str) -> None:
    whole = judge_in(1, real_job(trained, tmp_path / "1", real_stage(attack)))
    for shards in (2, 3, 11):
        job = real_job(trained, tmp_path / str(shards), real_stage(attack))
        parts = judge_in(shards, job, order=reversed(range(shards)))
        assert parts.record.verdicts is not None
        assert parts.record.verdicts.tolist() == whole.record.verdicts.tolist()  # type: ignore[union-attr]
        assert parts.record.facts == pytest.approx(whole.record.facts)
        assert parts.record.backwards == whole.record.backwards
        same = ("images", "survivors", "clean_correct", "digest", "config")
        assert {name: getattr(parts.record, name) for name in same} == {n: getattr(whole.record, n) for n in same}
        assert parts.judged == whole.judged


def test_a_shard_more_costs_no_more_than_filling_up_a_pass(trained: Any, tmp_path: Path) -> None:
    clean = judge_here(real_job(trained, tmp_path), 0.0).record.verdicts
    assert clean is not None
    stage = real_stage("apgd_t", position=1)
    standing = tuple(bool(verdict) for verdict in clean)
    forwards = []
    for shards in (1, 2, 3):
        job = real_job(trained, tmp_path / str(shards), stage, standing=standing)
        forwards.append(judge_in(shards, job).record.forwards or 0)
    most = 1 + max(stage.batch_size, CANONICAL_BATCH)
    assert all(0 <= found - forwards[0] <= extra * most for extra, found in enumerate(forwards))


def test_who_asks_again_pays_nothing_whatever_the_shards(trained: Any, tmp_path: Path) -> None:
    job = real_job(trained, tmp_path)
    first = judge_in(2, job)
    before = files(tmp_path)
    for shards in (1, 2, 3):
        again = judge_in(shards, job)
        assert again.judged == 0
        assert again.record.verdicts is not None
        assert again.record.verdicts.tolist() == first.record.verdicts.tolist()  # type: ignore[union-attr]
        assert again.record.facts == pytest.approx(first.record.facts)
        assert again.record.passes == pytest.approx(first.record.passes, abs=2 * shards)  # in whole images per shard
    assert files(tmp_path) == before


def test_another_plan_position_or_batch_size_asks_the_same_question(trained: Any, tmp_path: Path) -> None:
    first = judge_here(real_job(trained, tmp_path), 0.0)
    for changes in ({"plan": "more"}, {"position": 4, "label": "again"}, {"batch_size": 7}, {"cumulative": False}):
        again = judge_here(real_job(trained, tmp_path, replace(real_stage(), **changes)), 0.0)
        assert again.judged == 0
        assert again.record.digest == first.record.digest
        assert again.record.survivors == first.record.survivors


def test_more_images_are_judged_only_as_far_as_they_are_new(trained: Any, tmp_path: Path) -> None:
    few = judge_here(real_job(trained, tmp_path), 0.0)
    more = judge_here(real_job(trained, tmp_path, real_stage(images=80)), 0.0)
    assert more.judged == more.record.facts["attacked"] - few.judged
    fresh = judge_here(real_job(trained, tmp_path / "fresh", real_stage(images=80)), 0.0)
    assert more.record.verdicts is not None
    assert more.record.verdicts.tolist() == fresh.record.verdicts.tolist()  # type: ignore[union-attr]


def test_a_longer_attack_a_larger_ball_or_another_seed_is_another_question(trained: Any, tmp_path: Path) -> None:
    first = judge_here(real_job(trained, tmp_path), 0.0)
    digests = {first.record.digest}
    ball = {"norm": "linf", "epsilon": 0.06}
    for changes in ({"config": {"steps": 6}}, {"threat": ball}, {"seed": 1}, {"attack": "cw"}, {"split": "test"}):
        other = judge_here(real_job(trained, tmp_path, replace(real_stage(), **changes)), 0.0)
        assert other.judged == other.record.clean_correct
        digests.add(other.record.digest)
    assert len(digests) == 6


def test_a_later_stage_attacks_only_what_stands(trained: Any, tmp_path: Path) -> None:
    first = judge_here(real_job(trained, tmp_path), 0.0).record
    assert first.verdicts is not None
    standing = tuple(bool(verdict) for verdict in first.verdicts)
    later = judge_here(real_job(trained, tmp_path, real_stage("apgd_t", position=1), standing=standing), 0.0)
    assert later.record.verdicts is not None
    assert (later.record.verdicts <= first.verdicts).all()
    assert later.record.survivors is not None
    assert 0 < later.record.survivors < first.survivors  # type: ignore[operator]
    assert later.judged == later.record.facts["attacked"] == first.survivors
    assert later.record.clean_correct is None


def test_only_the_first_stage_pays_for_the_clean_passes(trained: Any, tmp_path: Path) -> None:
    first, second = (
        judge_here(real_job(trained, tmp_path / str(p), real_stage(position=p)), 0.0).record for p in (0, 1)
    )
    assert first.backwards == second.backwards
    assert (first.forwards or 0) >= (second.forwards or 0) + 50
    attacked = first.clean_correct or 0
    assert (first.facts["budget"], second.facts["budget"]) == (attacked * 16 + 50, attacked * 16)


def test_test_images_come_with_the_clean_accuracy_of_their_whole_split(trained: Any, tmp_path: Path) -> None:
    import torch

    images = trained.splits.test
    with torch.no_grad():
        right = trained.model(images.take(torch.arange(len(images.labels)))).argmax(1) == images.labels
    for shards in (1, 3):
        outcome = judge_in(shards, real_job(trained, tmp_path / str(shards), real_stage(split="test")))
        assert outcome.split_clean_acc == float(right.double().mean())
        assert outcome.record.images == 50


def test_no_shard_looks_at_an_image_of_another(trained: Any, tmp_path: Path) -> None:
    stage = real_stage(split="test")
    for shard in (2, 0, 1):
        judge_shard(real_job(trained, tmp_path / str(shard), stage), shard, 3)  # as if all ran at the same time
    seen = [np.load(path)["ids"] for path in tmp_path.rglob("*.npz") if "logit_scale_sum" in np.load(path)]
    assert sorted(np.concatenate(seen)) == list(range(len(trained.splits.test.labels)))
    count = len(trained.splits.test.labels)
    whole = judge_here(real_job(trained, tmp_path / "whole", real_stage(split="test", images=count)), 0.0)
    assert whole.split_clean_acc == (whole.record.clean_correct or 0) / count


def test_nobody_standing_is_a_finished_stage_without_a_pass(trained: Any, tmp_path: Path) -> None:
    job = real_job(trained, tmp_path, real_stage("apgd_t", position=1), standing=(False,) * 50, trial_folder="/nowhere")
    assert job.attacked == 0
    outcome = judge_here(job, 0.0)
    assert (outcome.record.state, outcome.record.survivors, outcome.record.passes, outcome.judged) == ("done", 0, 0, 0)
    assert outcome.record.verdicts is not None
    assert outcome.record.verdicts.tolist() == [False] * 50


def test_other_weights_or_images_are_refused(trained: Any, tmp_path: Path) -> None:
    for changes in ({"weights_digest": "0" * 16}, {"data_digest": "0" * 16}):
        with pytest.raises(ObjectiveMissing, match="not those"):
            judge_here(real_job(trained, tmp_path, **changes), 0.0)
    assert not files(tmp_path)


def test_the_ledger_first_knows_a_stage_without_figures(trained: Any, tmp_path: Path) -> None:
    stage = real_stage(position=2, plan="more", column="auto", label="auto.pgd", cumulative=False)
    record = started(real_job(trained, tmp_path, stage), 7.0)
    assert (record.state, record.started_at, record.position, record.survivors) == ("running", 7.0, 2, None)
    assert (record.plan, record.column, record.attack, record.cumulative) == ("more", "auto", "auto.pgd", False)


@given(st.integers(0, 300), st.integers(1, 40), st.integers(1, 9), st.integers(1, 5))
def test_a_shard_is_no_larger_than_a_unit_and_as_large_as_a_batch(
    standing: int, batch_size: int, workers: int, packed: int
) -> None:
    stage = ledgers.planned("pgd", 1, images=300, batch_size=batch_size)
    job = StageJob(0, stage, "", "", "", "", standing=tuple(np.arange(300) < standing))
    shards = job.shards(workers, packed * batch_size)
    sizes = [len(part) for part in np.array_split(np.arange(standing), shards)]
    assert max(sizes) <= packed * batch_size
    if shards > 1:
        assert 2 * min(sizes) >= batch_size, "no pass is mostly filled up"
    assert shards >= min(workers, standing // batch_size)


def test_a_shard_on_a_node_that_ends_stops_before_a_unit_that_would_not_fit_and_keeps_what_it_had_judged(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = replace(real_stage(), batch_size=5)  # units of twenty images
    whole = judge_here(real_job(trained, tmp_path / "whole", stage), 1.0)
    end = tmp_path / "at"
    monkeypatch.setenv(VARIABLE, str(end))
    end.write_text(f"{time.time() + 3600:.0f}")
    store, units = tmp_path / "store", 0
    judged = assessment._Shelf.filled

    def ending(self: Any, judge: Any, work: Any, on_unit: Any) -> Any:
        def count(known: int, of: int) -> None:
            nonlocal units
            units += 1
            if units == 2:  # the clean pass, and one unit of the attack
                end.write_text(f"{time.time() - 1:.0f}")
            on_unit(known, of)

        return judged(self, judge, work, count)

    monkeypatch.setattr(assessment._Shelf, "filled", ending)
    job = real_job(trained, store, stage)
    with pytest.raises(NodeEnding, match="pgd on trial 3: the node ends"):
        judge_shard(job, 0, 1)
    with pytest.raises(NodeEnding):
        judge_shard(job, 0, 1)
    assert units == 2, "nothing more was begun"
    end.unlink()
    outcome = judge_here(job, 1.0)
    assert 0 < outcome.judged < whole.judged
    assert outcome.record.verdicts.tolist() == whole.record.verdicts.tolist()  # type: ignore[union-attr]
