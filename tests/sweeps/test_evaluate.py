"""Judging what is trained already: further plans on a sweep's trials, and checkpoints from elsewhere."""

from __future__ import annotations

import io
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file

from search_spaces.errors import ConfigError, ModelError, SweepExists
from sweeps.config import AttackPlan, parse_sweep
from sweeps.evaluate import Added, add_plan, checkpoint_document, choose_trials, import_sweep, read_plan
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import IMPORTED, LAUNCHED, State
from sweeps.runner import drive
from sweeps.stage_job import StageJob, StageOutcome, judge_here
from sweeps.summary import front_of
from tests.sweeps.inline_pool import InlinePool
from tests.sweeps.made import judge_all, make_sweep
from tests.sweeps.test_pareto import slow_front

MORE = {"epsilon": 0.04, "images": 40, "batch_size": 20, "stages": [{"pgd": {"steps": 6}}], "test": None}


def plan_of(**changes: Any) -> AttackPlan:
    plan = parse_sweep({"attacks": {**MORE, **changes}}).attacks
    assert plan is not None
    return plan


def add(folder: SweepFolder, plan: AttackPlan, wanted: str = "all", name: str = "more") -> Added:
    return add_plan(folder, name, plan, wanted, Console(file=io.StringIO()))


@pytest.fixture
def ledger(made: SweepFolder) -> Iterator[Ledger]:
    ledger = Ledger.at(made.ledger)
    yield ledger
    ledger.close()


def own(ledger: Ledger, name: str = "more", number: int | None = None) -> list[Any]:
    return [stage for stage in ledger.stages(number) if stage.plan == name]


def files(folder: SweepFolder) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.verdicts.rglob("*.npz")}


# Plans


def test_a_plan_is_read_by_name_or_from_a_file_with_or_without_its_heading(tmp_path: Path) -> None:
    name, ready = read_plan("jasmin", None)
    assert (name, ready.as_written()) == ("jasmin", parse_sweep({"attacks": {"plan": "jasmin"}}).attacks.as_written())  # type: ignore[union-attr]
    text = "epsilon: 0.1\nstages: [fgsm]\n"
    (tmp_path / "bare.yaml").write_text(text)
    (tmp_path / "whole.yaml").write_text("attacks:\n" + "".join(f"  {line}\n" for line in text.splitlines()))
    bare, whole = (read_plan(str(tmp_path / f"{name}.yaml"), None) for name in ("bare", "whole"))
    assert (bare[0], whole[0]) == ("bare", "whole")
    assert bare[1] == whole[1]
    assert read_plan(str(tmp_path / "bare.yaml"), None, ["images=7", "stages[0].fgsm={}"])[1].images == 7


def test_a_plan_takes_the_sweeps_ball_and_images_unless_it_gives_its_own(tmp_path: Path) -> None:
    launched = plan_of(norm="l2", epsilon=0.5, images=33, seed=7)
    (tmp_path / "p.yaml").write_text("stages: [fgsm]\ncolumns: {A: {pgd: {}, epsilon: 0.25}}\nimages: 9\n")
    found = read_plan(str(tmp_path / "p.yaml"), launched)[1]
    assert (found.norm, found.epsilon, found.images, found.seed, found.batch_size) == ("l2", 0.5, 9, 7, 20)
    assert [stage.attack for stage in found.stages] == ["fgsm"]
    assert (found.columns["A"].threat.norm, found.columns["A"].threat.epsilon) == ("l2", 0.25)
    assert found.test is None  # as in the launched plan
    jasmin = read_plan("jasmin", launched)[1]
    assert (jasmin.norm, jasmin.epsilon, jasmin.images) == ("linf", 2 / 255, None)


@pytest.mark.parametrize("heading", ["", "attacks:\n"])
def test_every_mistake_in_a_plan_is_shown_with_its_line(tmp_path: Path, heading: str) -> None:
    lines = ["epsilon: 4", "stages:", "  - pdg", "images: few"]
    (tmp_path / "p.yaml").write_text(heading + "".join(f"{'  ' * bool(heading)}{line}\n" for line in lines))
    with pytest.raises(ConfigError) as caught:
        read_plan(str(tmp_path / "p.yaml"), plan_of())
    shift = bool(heading)
    assert {problem.line for problem in caught.value.problems} == {1 + shift, 3 + shift, 4 + shift}
    assert "Did you mean 'pgd'?" in str(caught.value)


def test_a_plan_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        read_plan(str(tmp_path / "none.yaml"), None)


# Whom it judges


def test_trials_are_chosen_by_front_all_or_numbers(ledger: Ledger) -> None:
    trials, objectives = ledger.trials(), ledger.sweep().objectives
    assert choose_trials("all", trials, objectives) == list(range(8))
    assert choose_trials("front", trials, objectives) == sorted(t.number for t in front_of(trials, objectives))
    assert choose_trials("1, 5-7,6", trials, objectives) == [1, 5, 6, 7]
    assert choose_trials("3-3", trials, objectives) == [3]


@pytest.mark.parametrize("wanted", ["", "best", "1,,2", "-1", "1-", "7-5", "1.5"])
def test_trials_that_cannot_be_read_are_refused_with_what_is_allowed(ledger: Ledger, wanted: str) -> None:
    with pytest.raises(ConfigError, match="--trials: expected front, all, or numbers such as 1,5-8"):
        choose_trials(wanted, ledger.trials(), ledger.sweep().objectives)


def test_trials_that_are_not_there_are_named(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="not among the finished trials: 8, 9") as caught:
        choose_trials("5-9", ledger.trials(), ledger.sweep().objectives)
    assert "8 are finished" in str(caught.value)


# Judging


@pytest.mark.usefixtures("without_ray")
def test_a_further_plan_judges_every_chosen_trial_by_all_of_it_and_changes_no_trial(
    made: SweepFolder, ledger: Ledger
) -> None:
    before = ledger.trials()
    plan = plan_of(
        stages=[{"pgd": {"steps": 6}}, {"apgd_ce": {"steps": 4}}],
        columns={"F": {"fgsm": {}, "epsilon": 0.02}},
        test={"images": 20, "stages": ["fgsm"]},
    )
    added = add(made, plan, "1,3-4")
    assert (added.plan, added.trials, added.failed, added.interrupted) == ("more", (1, 3, 4), 0, False)
    assert added.judged > 0
    planned = [stage for stage in ledger.sweep().planned_stages if stage.plan == "more"]
    assert [(s.split, s.position, s.label) for s in planned] == [
        ("validation", 4, "pgd"),
        ("validation", 5, "apgd_ce"),
        ("validation", 6, "F"),
        ("test", 0, "fgsm"),
        ("test", 1, "F"),
    ]
    for number in (1, 3, 4):
        found = {(s.split, s.attack): s for s in own(ledger, number=number)}
        assert len(found) == 5
        assert all(stage.state == "done" for stage in found.values())
        assert found["validation", "apgd_ce"].survivors <= found["validation", "pgd"].survivors
        assert found["validation", "F"].survivors >= found["validation", "pgd"].survivors
    assert {stage.number for stage in own(ledger)} == {1, 3, 4}
    keep = ("number", "state", "clean_acc", "robust_acc", "exact", "test_robust_acc", "test_clean_acc", "error")
    assert [[getattr(t, k) for k in keep] for t in ledger.trials()] == [[getattr(t, k) for k in keep] for t in before]


@pytest.mark.usefixtures("without_ray")
def test_who_asks_again_pays_nothing_and_needs_no_ray(
    made: SweepFolder, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert add(made, plan_of(), "front").judged > 0
    stages, events, stored = ledger.stages(), len(ledger.events()), files(made)

    def refuse(*_: Any) -> None:
        raise AssertionError("nothing is to be judged")

    monkeypatch.setattr("sweeps.evaluate.connect", refuse)
    again = add(made, plan_of(), "front")
    assert (again.judged, again.failed) == (0, 0)
    assert (ledger.stages(), len(ledger.events()), files(made)) == (stages, events, stored)


@pytest.mark.usefixtures("without_ray")
def test_trials_that_are_added_later_are_judged_beside_those_that_were(made: SweepFolder, ledger: Ledger) -> None:
    add(made, plan_of(), "0-1")
    first = own(ledger)
    more = add(made, plan_of(), "1-2")
    assert [stage.number for stage in own(ledger)] == [0, 1, 2]
    assert own(ledger)[:2] == first
    assert 0 < more.judged == own(ledger)[2].facts["attacked"]
    assert len([event for event in ledger.events() if event.kind == "plan added"]) == 1


@pytest.mark.usefixtures("without_ray")
def test_what_the_launched_plan_has_judged_is_taken_from_the_store(made: SweepFolder, ledger: Ledger) -> None:
    launched = {stage.number: stage for stage in ledger.stages() if stage.position == 0}
    stored = files(made)
    added = add(made, plan_of(stages=[{"pgd": {"steps": 3}}]), "all")
    assert added.judged == 0
    assert files(made) == stored
    for stage in own(ledger):
        assert stage.verdicts.tolist() == launched[stage.number].verdicts.tolist()  # type: ignore[union-attr]
        assert stage.digest == launched[stage.number].digest
    wider = add(made, plan_of(stages=[{"pgd": {"steps": 3}}], images=60), "0", name="wider")
    (stage,) = own(ledger, "wider")
    assert 0 < wider.judged == stage.facts["attacked"] - launched[0].facts["attacked"]


@pytest.mark.usefixtures("without_ray")
def test_pruned_trials_are_judged_to_the_end_and_the_front_was_right(made: SweepFolder, ledger: Ledger) -> None:
    sweep, trials = ledger.sweep(), ledger.trials()
    front = {t.number: (t.clean_acc, t.robust_acc) for t in front_of(trials, sweep.objectives)}
    pruned = [t.number for t in trials if not t.exact]
    assert len(front) > 1
    assert len({len(ledger.stages(number)) for number in pruned}) > 1, "bounds after one part, and after some"
    had, stored = ledger.stages(), files(made)
    attacks = parse_sweep(sweep.document).attacks
    assert attacks is not None
    added = add(made, attacks, "all", name="whole")
    assert {path: at for path, at in files(made).items() if path in stored} == stored
    assert added.judged == sum(s.facts["attacked"] for s in own(ledger, "whole")) - sum(
        s.facts["attacked"] for s in had
    ), "images that were judged before are not judged again"
    full: dict[int, tuple[float, float]] = {}
    for trial in trials:
        stages = own(ledger, "whole", trial.number)
        assert [s.survivors for s in stages][: len(ledger.stages(trial.number)) - len(stages)] == [
            s.survivors for s in had if s.number == trial.number
        ]
        full[trial.number] = (trial.clean_acc or 0.0, stages[-1].accuracy)
        assert full[trial.number][1] <= (trial.robust_acc or 0.0)
    numbers = list(full)
    assert {numbers[i]: full[numbers[i]] for i in slow_front(list(full.values()))} == front


@pytest.mark.usefixtures("without_ray")
def test_a_name_means_the_same_attacks_for_ever(made: SweepFolder, ledger: Ledger) -> None:
    add(made, plan_of(), "0")
    for changes in ({"epsilon": 0.03}, {"stages": ["fgsm"]}, {"images": 39}, {"seed": 1}, {"columns": {"F": "fgsm"}}):
        with pytest.raises(ConfigError, match="--as: the sweep has a plan 'more' with other attacks"):
            add(made, plan_of(**changes), "0")
    assert add(made, plan_of(batch_size=7, keep_images=True), "0").judged == 0  # decides no verdict
    for name in (LAUNCHED, "a b", "../x", ""):
        with pytest.raises(ConfigError, match="--as: a name is 1 to 64"):
            add(made, plan_of(), "0", name=name)
    assert len(own(ledger)) == 1


@pytest.mark.usefixtures("without_ray")
def test_an_attack_that_cannot_run_on_the_data_is_refused_before_anything_is_written(
    made: SweepFolder, ledger: Ledger
) -> None:
    with pytest.raises(ConfigError, match="first must be below the 9 wrong classes"):
        add(made, plan_of(stages=["pgd", {"apgd_t": {"first": 9}}]))
    assert len(ledger.sweep().planned_stages) == 4


def test_an_attack_that_fails_is_recorded_and_the_other_trials_go_on(
    made: SweepFolder, ledger: Ledger, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(InlinePool):
        def done(self) -> list[tuple[StageJob, StageOutcome | str]]:
            return [(job, "Traceback: boom" if job.number == 2 else outcome) for job, outcome in super().done()]

    monkeypatch.setattr("sweeps.evaluate.EvaluationPool", Failing)
    plan = plan_of(stages=[{"pgd": {"steps": 6}}, "fgsm"])
    added = add(made, plan, "1-3")
    assert added.failed == 1
    found = {(s.number, s.attack): s.state for s in own(ledger)}
    assert found == {(1, "pgd"): "done", (1, "fgsm"): "done", (2, "pgd"): "failed"} | {
        (3, "pgd"): "done",
        (3, "fgsm"): "done",
    }
    assert ledger.trial(2).state is State.FINISHED
    assert add(made, plan, "1-3").failed == 1  # tried again, and again it failed
    monkeypatch.setattr("sweeps.evaluate.EvaluationPool", InlinePool)
    assert add(made, plan, "1-3").failed == 0
    assert {s.state for s in own(ledger)} == {"done"}


def failing(error_of: Callable[[StageJob], str | None]) -> type[InlinePool]:
    """A pool whose stages fail as it is told, before they have judged anything."""

    class Failing(InlinePool):
        def done(self) -> list[tuple[StageJob, StageOutcome | str]]:
            jobs, self.running = self.running, []
            return [(job, error_of(job) or judge_here(job, 0.0)) for job in jobs]

    return Failing


SHORT = "Traceback …\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


def test_a_further_plan_that_does_not_fit_the_memory_is_judged_with_half_the_batch(
    made: SweepFolder, ledger: Ledger, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def error(job: StageJob) -> str | None:
        sizes.append(job.stage.batch_size)
        return SHORT if job.stage.batch_size > 5 else None

    monkeypatch.setattr("sweeps.evaluate.EvaluationPool", failing(error))
    said = io.StringIO()
    added = add_plan(made, "more", plan_of(), "0", Console(file=said, width=200))
    assert (added.failed, sizes) == (0, [20, 10, 5])
    (stage,) = own(ledger)
    assert (stage.state, stage.tries, stage.batch_size, stage.error) == ("done", 2, 5, None)
    assert "trial 0: pgd on validation images is tried again with batches of 5" in said.getvalue()
    monkeypatch.setattr("sweeps.evaluate.EvaluationPool", InlinePool)
    add(made, plan_of(), "0", name="calm")
    (calm,) = own(ledger, "calm")
    assert stage.verdicts.tolist() == calm.verdicts.tolist()


def test_a_further_plan_tries_a_failed_stage_as_often_as_the_policy_says(
    made: SweepFolder, ledger: Ledger, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: Counter[int] = Counter()

    def error(job: StageJob) -> str | None:
        tried[job.number] += 1
        if job.number == 0:
            return "AttackHung: pgd judged nothing"
        return "Traceback: boom" if job.number == 1 else None

    monkeypatch.setattr("sweeps.evaluate.EvaluationPool", failing(error))
    assert add(made, plan_of(), "0-2").failed == 2
    assert tried == {0: 2, 1: 1, 2: 1}  # by default a hang goes once more, and another failure does not
    assert {s.number: s.state for s in own(ledger)} == {0: "failed", 1: "failed", 2: "done"}
    assert ledger.trial(0).state is State.FINISHED
    assert add(made, plan_of(), "0-2").failed == 2
    assert tried == {0: 4, 1: 2, 2: 1}, "who asks again has all tries again"


def test_a_batch_that_was_halved_stays_so_after_an_interruption(
    made: SweepFolder, ledger: Ledger, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def error(job: StageJob) -> str | None:
        sizes.append(job.stage.batch_size)
        if len(sizes) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return SHORT if job.stage.batch_size > 10 else None

    monkeypatch.setattr("sweeps.evaluate.EvaluationPool", failing(error))
    assert add(made, plan_of(), "0").interrupted
    assert not add(made, plan_of(), "0").failed
    assert sizes == [20, 10]
    assert (own(ledger)[0].tries, own(ledger)[0].batch_size) == (1, 10)


def test_an_interrupted_evaluation_goes_on_where_it_was(
    made: SweepFolder, ledger: Ledger, without_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(InlinePool):
        def done(self) -> list[tuple[StageJob, StageOutcome | str]]:
            if any(stage.state == "done" for stage in own(ledger)):
                os.kill(os.getpid(), signal.SIGINT)
            return super().done()

    monkeypatch.setattr("sweeps.evaluate.EvaluationPool", Interrupted)
    first = add(made, plan_of(), "all")
    assert first.interrupted
    states = [stage.state for stage in own(ledger)]
    assert 0 < states.count("done") < 8
    monkeypatch.setattr("sweeps.evaluate.EvaluationPool", InlinePool)
    second = add(made, plan_of(), "all")
    assert not second.interrupted
    assert [stage.state for stage in own(ledger)] == ["done"] * 8
    assert first.judged + second.judged == sum(stage.facts["attacked"] for stage in own(ledger))


@pytest.mark.usefixtures("without_ray")
def test_a_sweep_that_was_launched_without_attacks_can_be_judged_later(trained: Any, tmp_path: Path) -> None:
    folder = SweepFolder(tmp_path, "clean")
    config = make_sweep(trained, folder, [trained.model.state_dict()], attacks=None, objectives=["clean_acc"])
    ledger = Ledger.at(folder.ledger)
    judge_all(config, ledger, folder)
    assert add(folder, plan_of(), "front").judged > 0
    (stage,) = own(ledger)
    assert (stage.position, stage.state, ledger.trial(0).state) == (0, "done", State.FINISHED)
    assert ledger.trial(0).robust_acc is None
    ledger.close()


# Checkpoints

MODEL = "{name: vit_tiny_patch16_224, img_size: 8, patch_size: 2, embed_dim: 48, depth: 3, num_heads: 3}"
PLAN = "{epsilon: 0.04, images: 20, batch_size: 20, stages: [{pgd: {steps: 3}}, fgsm], test: {images: 10, trials: 1}}"
QUIET = ["tracking.enabled=false"]


@pytest.fixture
def plan_file(tmp_path: Path) -> str:
    (tmp_path / "plan.yaml").write_text(f"model: {MODEL}\nattacks: {PLAN}\n")
    return str(tmp_path / "plan.yaml")


def timm_weights(trained: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trained.model.vit.state_dict().items()}


Write = Callable[[Any, Path], Path]


def as_pth(trained: Any, folder: Path) -> Path:
    torch.save(timm_weights(trained), folder / "model.pth")
    return folder / "model.pth"


def as_safetensors(trained: Any, folder: Path) -> Path:
    save_file(timm_weights(trained), folder / "model.safetensors")
    return folder / "model.safetensors"


def of_a_trial(trained: Any, folder: Path) -> Path:
    found: Path = trained.folder / "final" / "model.safetensors"
    return found if found.exists() else next((trained.folder / "final").glob("*.safetensors"))


def bring(checkpoint: Path, plan: str, folder: SweepFolder, model: str | None = None, *overrides: str) -> Any:
    document = checkpoint_document(checkpoint, plan, model, [*QUIET, *overrides])
    return import_sweep({**document, "name": folder.name}, checkpoint, folder, lambda text: None)


@pytest.mark.parametrize("write", [as_pth, as_safetensors, of_a_trial])
def test_a_checkpoint_becomes_a_sweep_of_one_trial_that_is_judged_whole(
    trained: Any, tmp_path: Path, plan_file: str, write: Write
) -> None:
    folder = SweepFolder(tmp_path / "runs", "brought")
    config = bring(write(trained, tmp_path), plan_file, folder)
    ledger = Ledger.at(folder.ledger)
    (trial,) = ledger.trials()
    images = trained.splits.validation
    with torch.no_grad():
        right = trained.model(images.take(torch.arange(len(images.labels)))).argmax(1) == images.labels
    assert (trial.state, trial.label, trial.clean_acc) == (State.TRAINED, IMPORTED, float(right.double().mean()))
    judge_all(config, ledger, folder)
    (trial,) = ledger.trials()
    assert (trial.state, trial.exact) == (State.FINISHED, True)
    assert trial.robust_acc is not None
    assert 0 < trial.robust_acc < (trial.clean_acc or 0)
    assert trial.test_robust_acc is not None
    assert [(s.split, s.attack) for s in ledger.stages()][:2] == [("validation", "pgd"), ("validation", "fgsm")]
    said = io.StringIO()
    outcome = drive(folder, Console(file=said))
    assert (outcome.exit_code, outcome.interrupted) == (0, False)
    assert "nothing to do" in said.getvalue()
    ledger.close()


def test_a_model_is_named_on_the_command_line_or_in_the_plan(trained: Any, tmp_path: Path, plan_file: str) -> None:
    checkpoint = as_pth(trained, tmp_path)
    with pytest.raises(ConfigError, match="--model: which timm model is it"):
        checkpoint_document(checkpoint, "standard", None)
    document = checkpoint_document(checkpoint, "jasmin", "vit_tiny_patch16_224", ["model.img_size=8"])
    assert document["model"] == {"name": "vit_tiny_patch16_224", "img_size": 8}
    assert list(document["attacks"]["columns"]) == ["FGSM2", "FGSM4", "PGD2", "PGD4"]
    assert document["attacks"]["evaluate"] == "all"
    assert checkpoint_document(checkpoint, plan_file, "vit_base_patch16_224")["model"]["depth"] == 3
    assert checkpoint_document(checkpoint, "standard", None, ["model.name=vit_tiny_patch16_224"])["model"]
    with pytest.raises(ConfigError, match="Did you mean"):
        bring(checkpoint, plan_file, SweepFolder(tmp_path / "runs", "x"), "vit_tini_patch16_224")


@pytest.mark.parametrize("text", ["attacks: [pgd]\n", "model: 3\nattacks: {}\n", "attacks: 3\nmodel: {name: vit}\n"])
def test_a_plan_of_another_shape_is_a_mistake_and_no_crash(trained: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError):
        bring(as_pth(trained, tmp_path), str(tmp_path / "bad.yaml"), SweepFolder(tmp_path / "runs", "x"))


def test_a_checkpoint_without_a_head_is_refused_and_leaves_no_sweep(
    trained: Any, tmp_path: Path, plan_file: str
) -> None:
    weights = {name: tensor for name, tensor in timm_weights(trained).items() if not name.startswith("head")}
    save_file(weights, tmp_path / "headless.safetensors")
    folder = SweepFolder(tmp_path / "runs", "headless")
    with pytest.raises(ModelError, match="needs the model whole") as caught:
        bring(tmp_path / "headless.safetensors", plan_file, folder)
    assert "head" in str(caught.value)
    assert not folder.ledger.exists()
    with pytest.raises(ModelError, match=r"gone\.pth"):
        bring(tmp_path / "gone.pth", plan_file, folder)
    bring(as_pth(trained, tmp_path), plan_file, folder)  # the name is free still
    with pytest.raises(SweepExists, match="evaluate headless"):
        bring(as_pth(trained, tmp_path), plan_file, folder)


def test_a_checkpoint_of_another_size_is_refused(trained: Any, tmp_path: Path, plan_file: str) -> None:
    with pytest.raises(ModelError, match="differently shaped: cls_token"):
        bring(as_pth(trained, tmp_path), plan_file, SweepFolder(tmp_path / "r", "x"), None, "model.embed_dim=24")


@pytest.mark.usefixtures("without_ray")
def test_a_checkpoint_takes_further_plans(trained: Any, tmp_path: Path, plan_file: str) -> None:
    folder = SweepFolder(tmp_path / "runs", "brought")
    config = bring(as_pth(trained, tmp_path), plan_file, folder)
    ledger = Ledger.at(folder.ledger)
    judge_all(config, ledger, folder)
    assert add(folder, plan_of(), "all").judged > 0
    assert own(ledger)[0].state == "done"
    ledger.close()
