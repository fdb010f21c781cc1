"""What a training step costs: each method beside plain training, and plain training beside the arithmetic limit.

    python -m benchmarks.steps

Everything is measured in one process. A round takes one step of every variant in turn; a ratio is between two steps of
one round, so that a machine that is slower for a while slows both.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rows import Row, measured, not_measured
from trainables.attention import Attended, Reads, record_attention
from trainables.config import MethodConfig, ModelConfig
from trainables.method import Batch, Method, cross_entropy
from trainables.methods.jasmin import Jasmin, JasminConfig
from trainables.methods.msvp import Msvp, MsvpConfig
from trainables.methods.plain import Plain
from trainables.vit import build_model

COMMAND = "python -m benchmarks.steps"
STEP_RATIO, GPU_RATIO, MSVP_RATIO = 1.10, 1.05, 1.05
SETTINGS = [(k, how) for k in (0, 10) for how in ("mean", "max")]


class StraightforwardJasmin(Jasmin):
    """The peer: attention unfused, every row sorted in full, gradients by autograd."""

    def reads(self, device: torch.device) -> Reads:
        return "probabilities"

    def _head_penalty(self, layer: Attended) -> Tensor:
        assert layer.probabilities is not None
        p, k = layer.probabilities.float(), self.config.k
        ordered = torch.cat([p.sort(-1, descending=True).values, torch.zeros_like(p[..., :1])], -1)

        def g(rank: int) -> Tensor:
            return ordered[..., rank - 1] * (1 - ordered[..., rank - 1] + ordered[..., rank])

        rows = (g(1) + 1e-12).log() - (g(k) + 1e-6).log() if k else g(1).clamp_min(1e-12).log()
        return rows.amax(-1) if self.config.aggregation == "max" else rows.mean(-1)


class Bench:
    """One model, one batch, one optimizer; steps of different methods on it."""

    def __init__(self, name: str, img_size: int, patch_size: int, batch_size: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device = device
        config = ModelConfig(name=name, img_size=img_size, patch_size=patch_size)
        self.model = build_model(config, num_classes=100, channels=3, mean=(0.5,), std=(0.25,)).to(device).train()
        images = torch.rand(batch_size, 3, img_size, img_size, device=device)
        self.batch = Batch(images, torch.randint(0, 100, (batch_size,), device=device))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-6, momentum=0.9, fused=True)

    def loss(self, method: Method[Any]) -> Tensor:
        """Return the loss with penalties, as the learner computes it."""
        low = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")
        with record_attention(self.model, method.reads(self.device)) as attention, low:
            task = cross_entropy(self.model(self.batch.images), self.batch.targets)
        return torch.stack([task, *method.penalty(self.model, attention).values()]).sum()

    def step(self, method: Method[Any]) -> None:
        """Take one training step."""
        self.optimizer.zero_grad()
        self.loss(method).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def seconds(self, method: Method[Any]) -> float:
        """Return the wall time of one step."""
        self._wait()
        started = time.perf_counter()
        self.step(method)
        self._wait()
        return time.perf_counter() - started

    def bytes_saved(self, method: Method[Any]) -> int:
        """Return how many bytes of activations the forward pass keeps for the backward pass; each storage once."""
        parameters = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, Tensor] = {}

        def note(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage().data_ptr() not in parameters:
                kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address is used twice
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            self.loss(method)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def ratios(bench: Bench, variants: Mapping[str, Method[Any]], rounds: int) -> dict[str, list[float]]:
    """Return for each variant its step time over that of "plain" in the same round."""
    for method in variants.values():
        bench.step(method)
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        times = {name: bench.seconds(method) for name, method in variants.items()}
        for name, value in times.items():
            found[name].append(value / times["plain"])
    return found


def method_rows(rounds: int) -> Iterator[Row]:
    """JaSMin's and MSVP's step beside plain training: ViT-S, patch 4, 32×32, batch 16, one CPU thread."""
    torch.set_num_threads(1)
    bench = Bench("vit_small_patch16_224", 32, 4, 16, torch.device("cpu"))
    variants = _variants(bench)
    times = ratios(bench, variants, rounds)
    plain_bytes = bench.bytes_saved(variants["plain"])
    sizes = {name: [bench.bytes_saved(method) / plain_bytes] for name, method in variants.items()}
    for k, how in SETTINGS:
        for path, target in (("", STEP_RATIO), ("_recompute", None)):
            for figure, found in (("step", times), ("saved_bytes", sizes)):
                identity, unit = f"jasmin_k{k}_{how}{path}_{figure}_ratio", f"× plain training's {figure}"
                peer = {"straightforward": statistics.median(found[f"jasmin_k{k}_{how}_straightforward"])}
                values = found[f"jasmin_k{k}_{how}{path}"]
                yield measured(identity, values, unit, COMMAND, at_most=target, peer=peer)
    yield measured("msvp_step_ratio", times["msvp"], "× plain step time", COMMAND, at_most=MSVP_RATIO)


def gpu_rows(rounds: int) -> Iterator[Row]:
    """JaSMin's step beside plain training on a GPU: ViT-B, N = 65 and 197, bfloat16."""
    for tokens, img_size, patch_size, batch_size in ((65, 32, 4, 512), (197, 224, 16, 128)):
        names = [f"jasmin_k{k}_{how}" for k, how in SETTINGS]
        unit = "× plain step time"
        if not torch.cuda.is_available():
            for name in names:
                identity = f"gpu_n{tokens}_{name}_step_ratio"
                yield not_measured(identity, "no GPU", unit, COMMAND, at_most=GPU_RATIO)
            continue
        bench = Bench("vit_base_patch16_224", img_size, patch_size, batch_size, torch.device("cuda"))
        times = ratios(bench, {n: m for n, m in _variants(bench).items() if n in ("plain", *names)}, rounds)
        for name in names:
            yield measured(f"gpu_n{tokens}_{name}_step_ratio", times[name], unit, COMMAND, at_most=GPU_RATIO)


def limit_rows(rounds: int) -> Iterator[Row]:
    """Plain training of ViT-T, S and B beside the arithmetic limit: the rate of one large matrix product."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    for name, batch_size in (("tiny", 32), ("small", 16), ("base", 8)):
        scale = 32 if device.type == "cuda" else 1
        bench = Bench(f"vit_{name}_patch16_224", 32, 4, batch_size * scale, device)
        plain = Plain(MethodConfig(), 1)
        with FlopCounterMode(display=False) as counter:
            bench.step(plain)
        work = counter.get_total_flops()
        shares = [work / bench.seconds(plain) / _matrix_rate(device) for _ in range(rounds)]
        unit = f"step's FLOP/s over those of a matrix product, {device.type}, one thread"
        yield measured(f"step_vit_{name}_arithmetic_share", shares, unit, COMMAND)


def rows(rounds: int = 9) -> list[Row]:
    """Measure everything."""
    return [*method_rows(rounds), *gpu_rows(rounds), *limit_rows(max(3, rounds // 3))]


def _variants(bench: Bench) -> dict[str, Method[Any]]:
    made: dict[str, Method[Any]] = {"plain": Plain(MethodConfig(), 1)}
    for k, how in SETTINGS:
        config = {"k": k, "aggregation": how}
        made[f"jasmin_k{k}_{how}"] = Jasmin(JasminConfig.model_validate(config), 1)
        made[f"jasmin_k{k}_{how}_recompute"] = Jasmin(JasminConfig.model_validate(config | {"path": "recompute"}), 1)
        made[f"jasmin_k{k}_{how}_straightforward"] = StraightforwardJasmin(JasminConfig.model_validate(config), 1)
    made["msvp"] = Msvp(MsvpConfig(), 1)
    made["msvp"].wrap(bench.model, bench.batch)
    return made


def _matrix_rate(device: torch.device) -> float:
    """Return FLOP/s of a product of two 2048×2048 (on a GPU 8192×8192, bfloat16) matrices, the best of three."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (2048, torch.float32)
    left, right = (torch.rand(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / min(_time(lambda: left @ right, device) for _ in range(3))


def _time(act: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.stdout.write(json.dumps(rows(), indent=2) + "\n")
