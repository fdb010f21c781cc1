"""Assessment: what was judged is not judged again, whoever asks and however the process ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from search_spaces.config import digest_of
from search_spaces.errors import AttackError, ObjectiveMissing
from tests.trainables.judging import BATCH_SIZE, COUNT, QUESTION, UNITS, ask, subject
from trainables import registry
from trainables.assessment import AttackQuestion, assess, assess_clean, verify
from trainables.attack import Threat
from trainables.attacks.pgd import Pgd, PgdConfig
from trainables.config import AttackConfig
from trainables.verdict_store import VerdictStore
from trainables.verdicts import Verdict

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = torch.arange(COUNT)
COSTLESS = {"seconds"}


@pytest.fixture
def store(tmp_path):
    return VerdictStore(tmp_path)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """An answer that nothing interrupted, and its store."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return ask(folder), VerdictStore(folder)


def units_of(store):
    return sorted(store.folder.rglob("*.npz"))


def test_the_first_answer_costs_passes_and_the_second_none(tmp_path):
    asked = subject()
    first = ask(tmp_path, asked)
    assert first.judged == COUNT
    assert 0 < int(first.correct.sum()) < COUNT
    assert first.new_forwards == first.facts["forwards"] > COUNT
    assert first.new_backwards == first.facts["backwards"] > 0
    assert asked.model.passes > 0
    again = subject()
    second = ask(tmp_path, again)
    assert again.model.passes == 0
    assert (second.judged, second.new_forwards, second.new_backwards) == (0, 0, 0)
    assert torch.equal(second.correct, first.correct)
    assert second.facts == first.facts


def test_only_images_that_are_missing_are_judged_whatever_the_batch_size(store):
    asked = subject()
    few = assess(asked, QUESTION, EVERYTHING[5:15], batch_size=4, store=store)
    all_of_them = assess(asked, QUESTION, EVERYTHING.flip(0), batch_size=7, store=store)
    assert (few.judged, all_of_them.judged) == (10, COUNT - 10)
    assert torch.equal(all_of_them.correct.flip(0)[5:15], few.correct)
    assert all_of_them.facts["forwards"] == few.new_forwards + all_of_them.new_forwards


def test_answers_are_those_of_the_attack_image_by_image(undisturbed):
    answer, _ = undisturbed
    asked = subject()
    attack = Pgd(QUESTION.config, QUESTION.threat)
    for i in range(COUNT):
        one, label = asked.images.take(EVERYTHING[i : i + 1]), asked.images.labels[i : i + 1]
        attacked = attack.perturb(asked.model, one, label, QUESTION.seed, EVERYTHING[i : i + 1])
        assert bool(asked.model(attacked).argmax(1) == label) == bool(answer.correct[i])


def test_every_unit_is_stored_before_the_next_is_judged(store):
    said = []

    def look(known, of):
        said.append((known, of, len(units_of(store))))

    assess(subject(), QUESTION, EVERYTHING, batch_size=BATCH_SIZE, store=store, on_unit=look)
    assert said == [(10 * (i + 1), COUNT, i + 1) for i in range(UNITS)]


def test_an_attack_that_fails_midway_keeps_what_was_judged(store):
    asked = subject()
    asked.images.labels[25] = 10
    with pytest.raises(AttackError, match="image 25"):
        assess(asked, QUESTION, EVERYTHING, batch_size=BATCH_SIZE, store=store)
    assert store.find(QUESTION.digest(asked), EVERYTHING).known.tolist() == [True] * 20 + [False] * 20


@pytest.mark.parametrize(
    "other",
    [
        replace(QUESTION, seed=8),
        replace(QUESTION, config=PgdConfig(steps=6, restarts=2)),
        replace(QUESTION, threat=Threat(epsilon=0.021)),
        replace(QUESTION, threat=Threat(norm="l2", epsilon=0.02)),
        replace(QUESTION, attack="cw"),
    ],
)
def test_another_question_has_another_name(other):
    assert other.digest(subject()) != QUESTION.digest(subject())


def test_a_question_has_the_name_that_it_had_before_there_were_surrogates():
    asked = subject()
    named = {
        "weights": "weights",
        "images": "images",
        "attack": "pgd",
        "revision": Pgd.revision,
        "config": QUESTION.config.plain(),
        "threat": QUESTION.threat.plain(),
        "seed": 7,
    }
    assert QUESTION.digest(asked) == digest_of(named)
    assert replace(QUESTION, surrogate="backbone").digest_for("weights", "images") != digest_of(named)


def test_a_surrogate_that_is_the_model_itself_shares_its_verdicts(store):
    asked, other = subject(), replace(QUESTION, surrogate="backbone")
    assert other.digest(asked) == QUESTION.digest(asked)
    first = assess(asked, QUESTION, EVERYTHING, batch_size=BATCH_SIZE, store=store)
    again = assess(asked, other, EVERYTHING, batch_size=BATCH_SIZE, store=store)
    assert again.judged == 0
    assert torch.equal(again.correct, first.correct)


def test_other_weights_images_or_a_new_revision_have_another_name_too(monkeypatch):
    asked = subject()
    names = {QUESTION.digest(asked)}
    names |= {QUESTION.digest(replace(asked, **{part: "other"})) for part in ("weights_digest", "images_digest")}
    names |= {asked.clean_digest(), replace(asked, images_digest="other").clean_digest()}
    monkeypatch.setattr(Pgd, "revision", Pgd.revision + 1)
    names |= {QUESTION.digest(asked)}
    assert len(names) == 6


def test_an_attack_from_a_plugin_can_be_asked_for(store, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_plugins", {})
    plugin = tmp_path / "to_black.py"
    plugin.write_text(
        "from trainables.attack import Attack\n"
        "from trainables.config import AttackConfig\n"
        "class ToBlack(Attack[AttackConfig]):\n"
        "    def perturb(self, model, images, labels, seed, image_ids):\n"
        "        return (images - self.threat.epsilon).clamp(0, 1)\n"
    )
    registry.load_plugins([plugin])
    asked = subject()
    question = AttackQuestion("to_black", AttackConfig(), Threat(epsilon=0.3), 0)
    answer = assess(asked, question, EVERYTHING, batch_size=8, store=store)
    darker = (asked.images.take(EVERYTHING) - 0.3).clamp(0, 1)
    assert torch.equal(answer.correct, asked.model(darker).argmax(1) == asked.images.labels)
    assert 0 < int(answer.correct.sum()) < COUNT


def test_clean_answers_are_stored_too_with_the_scale_of_the_logits_and_doubts(store):
    asked = subject()
    asked.images.labels[3] = (asked.images.labels[3] + 1) % 10
    first = assess_clean(asked, EVERYTHING[:10], batch_size=4, store=store)
    second = assess_clean(asked, EVERYTHING, batch_size=4, store=store)
    assert (first.judged, second.judged) == (10, 30)
    assert second.correct.tolist() == [i != 3 for i in range(COUNT)]
    logits = asked.model(asked.images.take(EVERYTHING)).detach()
    spread = float((logits.amax(1) - logits.amin(1)).sum())
    assert second.facts["logit_scale_sum"] == pytest.approx(spread, rel=1e-5)
    assert second.warnings == ()

    class Probabilities(nn.Module):
        def forward(self, images):
            return asked.model(images).softmax(1)

    doubted = replace(asked, model=Probabilities(), weights_digest="other")
    for _ in range(2):  # judged, and from the store
        assert "probabilities" in assess_clean(doubted, EVERYTHING, batch_size=4, store=store).warnings[0]


def test_who_wants_the_images_kept_pays_once_more_only_where_they_are_not(store):
    asked = subject()
    without = assess(asked, QUESTION, EVERYTHING, batch_size=8, store=store)
    kept = assess(asked, QUESTION, EVERYTHING, batch_size=8, store=store, keep=True)
    assert kept.judged == COUNT
    assert torch.equal(kept.correct, without.correct)
    for keep in (True, False):
        assert assess(asked, QUESTION, EVERYTHING, batch_size=8, store=store, keep=keep).judged == 0


def test_a_store_that_cannot_be_read_back_is_said_to_be_so(store, monkeypatch):
    def add_and_spoil(self, digest, verdict, add=VerdictStore.add):
        path = add(self, digest, verdict)
        path.write_bytes(path.read_bytes()[:100])

    monkeypatch.setattr(VerdictStore, "add", add_and_spoil)
    with pytest.raises(ObjectiveMissing, match=r"40 of 40 verdicts.*damaged: 0000000-.*Look at the disk"):
        assess(subject(), QUESTION, EVERYTHING, batch_size=20, store=store)


def test_a_damaged_unit_is_judged_again_and_no_other(store):
    first = ask(store.folder)
    units_of(store)[1].write_bytes(b"")
    second = ask(store.folder)
    assert second.judged == COUNT // UNITS
    assert torch.equal(second.correct, first.correct)


def same_files(store, other):
    """Whether two stores hold the same units, bit by bit but for times."""
    for ours, theirs in zip(units_of(store), units_of(other), strict=True):
        assert ours.relative_to(store.folder) == theirs.relative_to(other.folder)
        with np.load(ours) as mine, np.load(theirs) as yours:
            assert mine.files == yours.files
            for name in set(mine.files) - {"head"}:
                assert mine[name].tobytes() == yours[name].tobytes()


def killed(folder, point):
    """Judge in a process that dies at a point."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PARETUNE_KILL_AT": point}
    command = [sys.executable, "-m", "tests.trainables.judging", str(folder)]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


def test_a_process_that_is_killed_loses_the_unit_it_was_at_and_no_other(tmp_path, undisturbed):
    expected, whole = undisturbed
    store = VerdictStore(tmp_path)
    for point, kept in (("unit.write:2", 1), ("unit.written:2", 3)):
        assert killed(tmp_path, point) == -signal.SIGKILL
        known = store.find(QUESTION.digest(subject()), EVERYTHING, with_images=True).known
        assert known.tolist() == [True] * 10 * kept + [False] * 10 * (UNITS - kept)
    answer = ask(tmp_path)
    assert answer.judged == COUNT // UNITS
    assert torch.equal(answer.correct, expected.correct)
    assert {k: v for k, v in answer.facts.items() if k not in COSTLESS} == {
        k: v for k, v in expected.facts.items() if k not in COSTLESS
    }
    same_files(store, whole)


def test_kept_images_are_replayed(undisturbed):
    answer, store = undisturbed
    fallen = int((~answer.correct).sum())
    found = verify(subject(), QUESTION, store, batch_size=BATCH_SIZE)
    assert (found.kept, found.inside, found.misclassified) == (fallen, fallen, fallen)
    assert found.failed == ()
    assert found.without_image == 0


def all_fallen(ids, images):
    """A verdict that all of them became these images."""
    nobody = torch.zeros(len(ids), dtype=torch.bool)
    return Verdict(ids, nobody, (), 0, 0, 0.0, nobody, nobody, images)


def test_a_replay_names_who_left_the_ball_or_fools_nobody(undisturbed, tmp_path):
    answer, store = undisturbed
    asked = subject()
    narrow = replace(QUESTION, threat=Threat(epsilon=0.01))
    other = VerdictStore(tmp_path)
    fallen = EVERYTHING[~answer.correct].tolist()
    for ids, images in store.images(QUESTION.digest(asked)):
        first_unit = bool((ids < 10).all())
        other.add(narrow.digest(asked), all_fallen(ids, asked.images.take(ids) if first_unit else images))
    harmless = [i for i in fallen if i < 10]
    far = [i for i in fallen if i >= 10]
    found = verify(asked, narrow, other, batch_size=BATCH_SIZE)
    assert (found.kept, found.inside, found.misclassified) == (len(fallen), len(harmless), len(far))
    assert list(found.failed) == fallen


def test_a_replay_counts_the_fallen_whose_image_was_not_kept(store):
    asked = subject()
    assess(asked, QUESTION, EVERYTHING[:20], batch_size=8, store=store)
    kept = assess(asked, QUESTION, EVERYTHING[20:], batch_size=8, store=store, keep=True)
    everyone = assess(asked, QUESTION, EVERYTHING, batch_size=8, store=store)
    found = verify(asked, QUESTION, store, batch_size=8)
    assert found.kept == int((~kept.correct).sum()) > 0
    assert found.without_image == int((~everyone.correct[:20]).sum()) > 0
    empty = verify(asked, replace(QUESTION, seed=99), store, batch_size=8)
    assert (empty.kept, empty.without_image, empty.failed) == (0, 0, ())
