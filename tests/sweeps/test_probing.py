from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.packing import Device, Node
from cluster.resources import GB
from search_spaces.errors import DoesNotFit
from sweeps.config import parse_sweep
from sweeps.measured_memory import Need, Needs
from sweeps.memory_classes import classes_of
from sweeps.probing import LONGEST_S, Question, answer, describe, measure, questions
from tests.sweeps.test_memory_classes import MODEL, stage
from tests.trainables.gpus import CountingGpu
from trainables.gpu_memory import Meter

DOCUMENT = {
    "model": MODEL,
    "data": {"name": "digits"},
    "objectives": ["clean_acc"],
    "methods": ["plain", {"jasmin": {"k": 0, "aggregation": "max"}}],
}
NODES = [
    Node("a", 8, (Device("a", 0, "A 80 GB", 80 * GB, "A"), Device("a", 1, "A 80 GB", 80 * GB, "A"))),
    Node("b", 8, (Device("b", 0, "B 24 GB", 24 * GB, "B"),)),
    Node("c", 8, (Device("c", 0),)),
]


def asked(needs: Needs, **resources: Any) -> list[Question]:
    config = parse_sweep({**DOCUMENT, "resources": resources})
    return questions(config, [stage("pgd", steps=2)], NODES, needs)


def test_each_class_is_measured_once_on_each_kind_of_device_whose_memory_is_known() -> None:
    found = asked(Needs())
    assert [(q.purpose, q.device.kind) for q in found] == [
        (purpose, kind) for kind in ("A 80 GB", "B 24 GB") for purpose in ("training", "training", "attack", "attack")
    ]
    known = [Need(q.purpose, q.of.label, q.of.parts, q.of.images, q.device.kind, GB, {}) for q in found]
    assert asked(Needs(known)) == []
    assert asked(Needs(known[:-1])) == found[-1:]


def test_what_is_pinned_is_not_measured() -> None:
    assert {q.purpose for q in asked(Needs(), gpus=0.5)} == {"attack"}
    assert {q.purpose for q in asked(Needs(), evaluation={"memory_gb": 3})} == {"training"}
    assert asked(Needs(), memory_gb=12, evaluation={"gpus": 0.2}) == []


def test_a_laptop_without_a_gpu_measures_nothing() -> None:
    assert questions(parse_sweep(DOCUMENT), [stage("pgd")], [Node("here", 4)], Needs()) == []


def fake(question: Question) -> tuple[Future[dict[str, Any]], Callable[[], None]]:
    """Answer in the place of a device: jasmin breaks, attacks never end."""
    future: Future[dict[str, Any]] = Future()
    of = question.of
    if question.purpose == "training" and of.label.startswith("jasmin"):
        future.set_exception(ValueError("Traceback\nValueError: this method is broken"))
    elif question.purpose == "training":
        need = Need(question.purpose, of.label, of.parts, of.images, question.device.kind, GB, {})
        future.set_result(need.plain())
    return future, lambda: GIVEN_UP.append(question.label)


GIVEN_UP: list[str] = []


def test_what_is_measured_is_noted_one_by_one_and_what_fails_or_lasts_too_long_is_said_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sweeps.probing.LONGEST_S", 0.1)
    GIVEN_UP.clear()
    noted: list[Need] = []
    said: list[str] = []
    measure([q for q in asked(Needs()) if q.device.kind == "A 80 GB"], noted.append, said.append, lambda: False, fake)
    assert [n.label for n in noted] == ["plain, 8 px, 128 images, float32"]
    late = [f"pgd on {method}, 64 images on A 80 GB" for method in ("plain", "jasmin")]
    assert sorted(said) == [
        "jasmin, 8 px, 128 images, float32 on A 80 GB could not be measured: ValueError: this method is broken",
        "measuring the GPU memory of 2 kinds of trainings and 2 kinds of attacks on A 80 GB; each takes some seconds",
        *sorted(f"{label} could not be measured in time; its share is what it would be without" for label in late),
        "plain, 8 px, 128 images, float32 needs 1.0 GB of A 80 GB, 1% of it",
    ]
    assert late == GIVEN_UP


def test_a_driver_that_is_asked_to_stop_gives_up_what_it_measures_and_says_nothing_of_it() -> None:
    GIVEN_UP.clear()
    said: list[str] = []
    attacks = [q for q in asked(Needs()) if q.purpose == "attack"]
    measure(attacks, lambda need: None, said.append, lambda: True, fake)
    begun = "measuring the GPU memory of 2 kinds of attacks on A 80 GB, B 24 GB; each takes some seconds"
    assert (said, len(GIVEN_UP)) == ([begun], len(attacks))


def test_where_nothing_is_to_be_measured_nothing_is_said() -> None:
    said: list[str] = []
    measure([], lambda need: None, said.append, lambda: False, fake)
    assert said == []


def test_as_long_as_measurements_end_the_others_may_go_on_and_when_none_does_they_are_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = SimpleNamespace(at=0.0, monotonic=lambda: now.at)
    monkeypatch.setattr("sweeps.probing.time", now)
    slow: list[Future[dict[str, Any]]] = []

    def ask(question: Question) -> tuple[Future[dict[str, Any]], Callable[[], None]]:
        slow.append(Future())
        return slow[-1], lambda: GIVEN_UP.append(question.label)

    def next_ends(running: Any, *_: Any) -> Any:
        now.at += 0.9 * LONGEST_S
        if now.at > 3 * LONGEST_S:
            return SimpleNamespace(done=())
        done = next(future for future in slow if future in running)
        of = asked(Needs())[slow.index(done)].of
        done.set_result(Need("training", of.label, of.parts, of.images, "A 80 GB", GB, {}).plain())
        return SimpleNamespace(done=(done,))

    monkeypatch.setattr("sweeps.probing.wait", next_ends)
    GIVEN_UP.clear()
    noted: list[Need] = []
    questions_asked = asked(Needs())
    measure(questions_asked, noted.append, lambda text: None, lambda: False, ask)
    assert len(noted) == 3, "each within LONGEST_S of the one before"
    assert len(GIVEN_UP) == len(questions_asked) - 3
    assert now.at < 5 * LONGEST_S, "a device that is busy with something else is not waited for once for each"


@pytest.mark.usefixtures("_one_thread")
def test_a_measurement_really_trains_and_attacks(monkeypatch: pytest.MonkeyPatch) -> None:
    of, member = next(iter(classes_of(parse_sweep(DOCUMENT)).items()))
    question = Question("training", of, member.plain(), None, NODES[0].devices[0])
    for one in (question, replace(question, purpose="attack", stage=stage("pgd", batch_size=8, steps=2))):
        with CountingGpu() as gpu:
            monkeypatch.setattr("trainables.memory_probe._meter", lambda place, gpu=gpu: Meter(gpu))
            found = Need(**answer(one))
        assert found.purpose == one.purpose
        assert found.needed is not None
        assert found.needed > found.peak["allocated"] > 0


def test_a_device_that_is_too_small_is_no_error_of_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_small(config: Any) -> Any:
        raise DoesNotFit("Lower training.batch_size.")

    monkeypatch.setattr("trainables.memory_probe.measure_training", too_small)
    of, member = next(iter(classes_of(parse_sweep(DOCUMENT)).items()))
    found = Need(**answer(Question("training", of, member.plain(), None, NODES[0].devices[0])))
    assert (found.needed, found.peak) == (None, {"error": "Lower training.batch_size."})


def test_what_does_not_fit_says_what_helps() -> None:
    need = Need("training", "plain, 512 images", "{}", 512, "L4 22 GB", None, {"error": "Lower training.batch_size."})
    assert describe(need, 22 * GB) == "plain, 512 images does not fit on L4 22 GB. Lower training.batch_size."
