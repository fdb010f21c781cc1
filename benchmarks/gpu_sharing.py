"""What a GPU does when trainings share it: throughput of several at once beside one by one, and the guard at work.

    python -m benchmarks.gpu_sharing

Each training is a process of its own, without Ray, on random images of CIFAR's shape. All are ready before the clock
starts. Needs torch, timm and this project; without a GPU its rows have no value.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.rows import Row, measured, not_measured
from cluster.mps import mps

COMMAND = "python -m benchmarks.gpu_sharing"
ROOT = Path(__file__).resolve().parents[1]
TOGETHER = (1, 2, 4, 8)
"""Trainings at once."""
TARGETS = {"tiny": 4.0, "small": 2.5, "base": 1.1}
"""Throughput of the best packing over that of one training alone, by model."""
BATCH, CLASSES, SIDE, PATCH = 128, 10, 32, 4
WARM_STEPS = 20
SECONDS = 8.0
"""Steps are counted for so long, by all trainings at once (our choice)."""
READY_S = 240.0
"""All trainings are ready after so many seconds, or the measurement is given up."""
NEIGHBOUR = 0.9
"""Of its throughput alone a neighbour keeps so much beside a process that is stopped (our choice)."""
GUARD_SHARE, GREEDY_SHARE = 0.2, 0.5
"""What the process that exceeds its share has, and what it asks for."""


class Crowd:
    """Processes that begin together: each writes a file when it is ready, and waits for one that lets all begin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._processes: list[subprocess.Popen[str]] = []

    def add(self, role: str, **options: object) -> None:
        """Start a process. Args: role, options: as `main` takes them."""
        ready = self.folder / f"ready-{len(self._processes)}"
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu_sharing", "--role", role, "--ready", str(ready), *words],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
        )

    def answers(self) -> list[dict[str, float]]:
        """Let all begin and return what each has printed last; whoever is left after an error is ended."""
        try:
            until = time.monotonic() + READY_S
            while len(list(self.folder.glob("ready-*"))) < len(self._processes):
                if time.monotonic() > until or any(process.poll() for process in self._processes):
                    raise RuntimeError("a training did not get ready; its error stands above.")
                time.sleep(0.05)
            (self.folder / "begin").touch()
            printed = [process.communicate(timeout=READY_S)[0] for process in self._processes]
        finally:
            for process in self._processes:
                process.kill()
        return [json.loads(text.splitlines()[-1]) for text in printed]


def images_per_second(model: str, together: int) -> float:
    """Return how many images so many trainings learn from in a second, all together."""
    with tempfile.TemporaryDirectory() as place:
        crowd = Crowd(Path(place))
        for seed in range(together):
            crowd.add("train", model=model, share=round(1 / together, 3), seed=seed)
        return sum(answer["images_per_s"] for answer in crowd.answers())


def sharing_rows(rounds: int) -> Iterator[Row]:
    """Throughput of 1, 2, 4 and 8 trainings over that of one alone in the same round, with and without MPS."""
    for model, target in TARGETS.items():
        best: list[float] = []
        for with_mps in (False, True):
            with tempfile.TemporaryDirectory() as place, mps(Path(place), wanted=with_mps, say=_note) as daemon:
                if with_mps and not daemon:
                    continue
                found = _rounds(model, rounds)
            name = f"gpu_vit_{model}{'_mps' if with_mps else ''}"
            unit = f"× images/s of one by one, {torch.cuda.get_device_name(0)}"
            for together in TOGETHER[1:]:
                gains = [each[together] / each[1] for each in found]
                yield measured(f"{name}_{together}_at_once", gains, unit, COMMAND, peer={"one": found[0][1]})
            best = max(best, [max(each[n] / each[1] for n in TOGETHER) for each in found], key=lambda v: sum(v))
        yield measured(f"gpu_vit_{model}_best_packing", best, unit, COMMAND, at_least=target)


def _rounds(model: str, rounds: int) -> list[dict[int, float]]:
    return [{together: images_per_second(model, together) for together in TOGETHER} for _ in range(rounds)]


def guard_rows() -> Iterator[Row]:
    """One process asks for more than its share while a neighbour trains: it is stopped, and the neighbour goes on."""
    with tempfile.TemporaryDirectory() as place:
        crowd = Crowd(Path(place))
        crowd.add("train", model="small", share=1 - GREEDY_SHARE, seed=0)
        crowd.add("exceed", share=GUARD_SHARE)
        neighbour, greedy = crowd.answers()
    alone = images_per_second("small", 1)
    name = torch.cuda.get_device_name(0)
    peak, limit = greedy["taken_share"], GUARD_SHARE
    yield measured("gpu_guard_share_taken", [peak], f"of {name}, its share is {limit:g}", COMMAND, at_most=limit)
    kept = neighbour["images_per_s"] / alone
    yield measured("gpu_guard_neighbour", [kept], f"× images/s alone, {name}", COMMAND, at_least=NEIGHBOUR)


def train(model: str, share: float, seed: int, ready: Path) -> Mapping[str, float]:
    """Train on random images within a share of the device, and count images. Runs in a process of its own."""
    from trainables.config import ModelConfig
    from trainables.gpu_guard import begin_job
    from trainables.vit import build_model

    guard = begin_job(share)
    torch.manual_seed(seed)
    device = torch.device("cuda")
    config = ModelConfig(name=f"vit_{model}_patch16_224", img_size=SIDE, patch_size=PATCH)
    vit = build_model(config, num_classes=CLASSES, channels=3, mean=(0.5,), std=(0.25,)).to(device).train()
    optimizer = torch.optim.AdamW(vit.parameters(), lr=1e-4, fused=True)
    images = torch.rand(BATCH, 3, SIDE, SIDE, device=device)
    labels = torch.randint(0, CLASSES, (BATCH,), device=device)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(vit(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(WARM_STEPS):
        step()
    torch.cuda.synchronize()
    _wait(ready)
    began, count = time.monotonic(), 0
    while time.monotonic() - began < SECONDS:
        for _ in range(10):  # a look at the clock waits for the device
            step()
        torch.cuda.synchronize()
        count += 10 * BATCH
    spent = time.monotonic() - began
    guard.check()
    return {"images_per_s": count / spent}


def exceed(share: float, ready: Path) -> Mapping[str, float]:
    """Take memory until the allocator refuses, and return which part of the device was had. Like `train`."""
    from trainables.gpu_guard import begin_job

    guard = begin_job(share)
    assert guard.gpu is not None
    _wait(ready)
    held: list[torch.Tensor] = []
    block = 64 * 2**20
    try:
        while len(held) * block < GREEDY_SHARE * guard.gpu.total:
            held.append(torch.ones(block, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError:
        torch.cuda.synchronize()
    taken = guard.gpu.process() or guard.gpu.reserved_peak()
    time.sleep(SECONDS / 2)  # the neighbour trains on beside what is held
    return {"taken_share": taken / guard.gpu.total}


def rows(rounds: int = 3) -> Iterator[Row]:
    """Measure everything; without a GPU the rows have no value."""
    if torch.cuda.is_available():
        yield from sharing_rows(rounds)
        yield from guard_rows()
        return
    for model, target in TARGETS.items():
        unit = "× images/s of one by one"
        yield not_measured(f"gpu_vit_{model}_best_packing", "no GPU", unit, COMMAND, at_least=target)
    yield not_measured("gpu_guard_share_taken", "no GPU", "of the device", COMMAND, at_most=GUARD_SHARE)
    yield not_measured("gpu_guard_neighbour", "no GPU", "× images/s alone", COMMAND, at_least=NEIGHBOUR)


def _wait(ready: Path) -> None:
    ready.touch()
    while not (ready.parent / "begin").exists():
        time.sleep(0.002)


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main(words: Sequence[str]) -> None:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--role", choices=("train", "exceed"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ready", type=Path, default=Path(os.devnull))
    given = parser.parse_args(words)
    answer: object
    if given.role == "train":
        answer = train(given.model, given.share, given.seed, given.ready)
    elif given.role == "exceed":
        answer = exceed(given.share, given.ready)
    else:
        sys.stdout.write(json.dumps(list(rows(given.rounds)), indent=2, ensure_ascii=False) + "\n")
        return
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
