"""A storm: `kill -9` of the driver, trial and evaluation workers, MLflow's server and Ray nodes, at random moments.

`python -m tests.crash.storm --seed 1` lets one sweep on a small Ray cluster meet twenty of them, then checks that
nothing was lost and nothing done twice. Odd seeds search at random, which does not depend on timing, and compare the
sweep with an undisturbed one bit for bit; even seeds search with TPE, spare attacks on dominated trials, and train
and judge every trial again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from cluster.connect import prepare_environment
from sweeps.export import export_json
from sweeps.folder import SweepFolder
from sweeps.ledger import Ledger
from sweeps.records import State
from sweeps.summary import status
from tests.crash.drivers import ROOT, Driver
from tests.crash.evidence import assert_judged_once, assert_mirrored, assert_nothing_twice, results, slow_front
from tests.crash.servers import Server

KINDS = ("driver", "trial worker", "evaluation worker", "server", "node")
CTRL_C = "Ctrl-C"
"""No kill: the driver stops by itself, within seconds, and says how to go on."""
OF_TWENTY = {"driver": 7, "trial worker": 4, "evaluation worker": 3, "server": 3, "node": 3}
EPOCHS, STAGES = 8, 2
PACE_S = "0.25"
PATIENCE_S = 180.0
NAME = "storm"

SWEEP = f"""
model: {{name: vit_tiny_patch16_224, img_size: 8, patch_size: 2, embed_dim: 24, depth: 2, num_heads: 2}}
data: {{name: digits, train_images: 300, validation_images: 80, test_images: 40}}
training: {{epochs: {EPOCHS}, learning_rate: {{log_uniform: [2.0e-3, 8.0e-3]}}, batch_size: 32}}
plugins: [{ROOT}/tests/crash/paced.py, {ROOT}/tests/crash/paced_pgd.py]
methods:
  - paced: {{}}
  - {{paced: {{}}, jasmin: {{k: [0, 4, 8]}}}}
attacks:
  epsilon: 0.04
  images: 60
  batch_size: 5
  stages: [{{paced_pgd: {{steps: 3}}}}, {{paced_pgd: {{steps: 6, restarts: 2}}}}]
  test: {{images: 20, stages: [fgsm], trials: 2}}
resources: {{concurrent: 2}}
failures: {{crash: {{retries: 20, backoff_s: 0.2}}, attack: {{retries: 5}}}}
"""


@dataclass(frozen=True)
class Strike:
    """One kill of a storm."""

    kind: str
    at: float
    """Share of the sweep's work that is done when it comes."""
    wait_s: float
    """From then on, so that it does not always follow a commit."""
    away_s: float
    """Until what was killed is started again, where that is the user's business."""
    again_after_s: float | None = None
    """A second kill of the driver, so long after it was started again: in the midst of its start."""


def draw(seed: int, counts: dict[str, int]) -> list[Strike]:
    """Draw the strikes of a storm, in order; every second pair of driver kills is a kill and one within the start."""
    generator = random.Random(seed)
    drivers = counts["driver"]
    twins = drivers // 3
    kinds = ["driver and again"] * twins + ["driver"] * (drivers - 2 * twins)
    kinds += [kind for kind in (*KINDS, CTRL_C) if kind != "driver" for _ in range(counts.get(kind, 0))]
    generator.shuffle(kinds)
    step = 0.9 / len(kinds)
    strikes = []
    for place, kind in enumerate(kinds):
        at, wait_s, away_s = (place + generator.random()) * step, generator.uniform(0, 1), generator.uniform(0, 2)
        again = generator.uniform(0.5, 9) if kind == "driver and again" else None
        strikes.append(Strike(kind.split(" and ")[0], at, wait_s, away_s, again))
    return strikes


class Storm:
    """One sweep, the cluster and the server that it uses, and what happens to them."""

    def __init__(self, storage: Path, seed: int, sampler: str, trials: int, say: Callable[[str], None]) -> None:
        self.storage, self.seed, self.sampler, self.trials, self.say = storage, seed, sampler, trials, say
        self.kills: Counter[str] = Counter()
        self.began = time.monotonic()
        (storage / "server").mkdir(parents=True)
        (storage / f"{NAME}.yaml").write_text(SWEEP)
        self.server = Server(storage / "server" / "mlflow.db")
        self._side = ThreadPoolExecutor(1)
        self._starting: Future[None] = self._side.submit(self.server.start)
        self.cluster = start_cluster()

    @contextlib.contextmanager
    def running(self) -> Iterator[Storm]:
        """Launch the sweep; put away at the end whatever still runs."""
        self._starting.result()
        settings = settings_of(self.seed, self.sampler, self.trials, f"tracking.uri={self.server.address}")
        where = ("--storage", ".", "--address", self.cluster.address)
        self.driver = Driver(self.storage, "launch", f"{NAME}.yaml", "--name", NAME, *where, *settings)
        try:
            yield self
        finally:
            self.driver.process.kill()
            self.driver.process.wait()
            self._starting.exception()
            self._side.shutdown()
            self.server.close()
            self.cluster.shutdown()

    @property
    def has_server(self) -> bool:
        """Whether MLflow's server answers, as far as this process knows: its start takes seconds."""
        return self._starting.done()

    def strike(self, strike: Strike) -> None:
        """Wait for the moment of a strike, do it, and put things right as a user would."""
        self._until(lambda: self.progress() >= strike.at)
        time.sleep(strike.wait_s)
        {
            "driver": self._strike_driver,
            CTRL_C: self._interrupt,
            "trial worker": lambda _: self._strike_worker("TrialTrainable"),
            "evaluation worker": lambda _: self._strike_worker("judge_shard"),
            "server": self._strike_server,
            "node": self._strike_node,
        }[strike.kind](strike)

    def _strike_driver(self, strike: Strike) -> None:
        self._kill_driver("driver")
        time.sleep(strike.away_s)
        self.driver = self._resume()
        if strike.again_after_s is not None:
            time.sleep(strike.again_after_s)
            self._kill_driver(f"driver, {strike.again_after_s:.1f} s after its start")
            self.driver = self._resume()

    def _interrupt(self, strike: Strike) -> None:
        self._assert_driver_lives()
        self.driver.process.send_signal(signal.SIGINT)
        asked = time.monotonic()
        assert self.driver.wait() == 130, self.driver.text()
        assert time.monotonic() - asked < 10
        assert f"run_sweep.py resume {NAME}" in self.driver.text()
        self._note(CTRL_C, CTRL_C)
        self.driver = self._resume()

    def _kill_driver(self, what: str) -> None:
        self._assert_driver_lives()
        self.driver.process.send_signal(signal.SIGKILL)
        assert self.driver.wait() == -signal.SIGKILL
        self._note("driver", what)

    def _resume(self) -> Driver:
        return Driver(self.storage, "resume", NAME, "--storage", ".", "--address", self.cluster.address)

    def _strike_worker(self, title: str) -> None:
        found: list[psutil.Process] = []

        def is_there() -> bool:
            found[:] = workers(self.cluster, title)
            return bool(found)

        self._until(is_there)
        with contextlib.suppress(psutil.NoSuchProcess):
            random.Random(f"{self.seed} {sum(self.kills.values())}").choice(found).kill()
        kind = "trial worker" if title == "TrialTrainable" else "evaluation worker"
        self._note(kind, kind)

    def _strike_server(self, strike: Strike) -> None:
        self._starting.result()
        self.server.kill()
        self._note("server", f"MLflow's server, away for {strike.away_s:.1f} s")

        def start() -> None:
            time.sleep(strike.away_s)
            self.server.start()

        self._starting = self._side.submit(start)

    def _strike_node(self, strike: Strike) -> None:
        at_work = {node: count_at_work(node) for node in self.cluster.worker_nodes}
        node = max(at_work, key=lambda one: at_work[one])
        self.cluster.remove_node(node, allow_graceful=False)
        self._note("node", f"node with {at_work[node]} workers at work, another one comes after {strike.away_s:.1f} s")
        time.sleep(strike.away_s)
        self.cluster.add_node(num_cpus=2)

    def end(self) -> None:
        """Wait until the sweep has ended by itself, and MLflow has been told."""
        assert self.driver.wait(PATIENCE_S) == 0, self.driver.text()
        self._starting.result()
        if "MLflow is behind" in self.driver.text():
            self.say("MLflow is behind: sync")
            sync = Driver(self.storage, "sync", NAME, "--storage", ".")
            assert sync.wait() == 0, sync.text()

    def progress(self) -> float:
        """Return how much of the work is done, in [0, 1]: epochs, and first stages of the cascade."""
        if not (self.storage / NAME / "ledger.db").exists():
            return 0.0
        with self.ledger() as ledger:
            trials = ledger.trials(bare=True)
        done = sum(min(t.epochs, EPOCHS) + STAGES * (t.state is State.FINISHED) for t in trials)
        return done / (self.trials * (EPOCHS + STAGES))

    @contextlib.contextmanager
    def ledger(self) -> Iterator[Ledger]:
        ledger = Ledger.at(SweepFolder.existing(self.storage, NAME).ledger)
        try:
            yield ledger
        finally:
            ledger.close()

    def _until(self, happened: Callable[[], bool]) -> None:
        limit = time.monotonic() + PATIENCE_S
        while not happened():
            self._assert_driver_lives()
            assert time.monotonic() < limit, f"nothing happens any more:\n{self.driver.text()}"
            time.sleep(0.05)

    def _assert_driver_lives(self) -> None:
        code = self.driver.process.poll()
        assert code is None, f"the driver ended by itself with code {code}:\n{self.driver.text()}"

    def _note(self, kind: str, what: str) -> None:
        self.kills[kind] += 1
        number, at = sum(self.kills.values()), time.monotonic() - self.began
        self.say(f"{number:3} {at:6.1f} s {self.progress():5.0%}  {what}")


def start_cluster() -> Any:
    """Start a head without shares and two nodes with two each; what runs in them is paced."""
    prepare_environment()
    os.environ |= {"PARETUNE_TEST_PACE_S": PACE_S, "OMP_NUM_THREADS": "1"}
    os.environ |= {
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "4",
    }  # 3000 and 5 are long
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    del os.environ["PARETUNE_TEST_PACE_S"]
    return cluster


def workers(cluster: Any, title: str) -> list[psutil.Process]:
    """Return the workers of a cluster whose title has a word in it; Ray names them by what they do."""
    found = [process for node in cluster.worker_nodes for process in processes(node) if title in title_of(process)]
    return sorted(found, key=lambda process: process.pid)


def count_at_work(node: Any) -> int:
    """Return how many workers of a node train or judge."""
    titles = [title_of(process) for process in processes(node)]
    return sum("TrialTrainable" in title or "judge_shard" in title for title in titles)


def processes(node: Any) -> list[psutil.Process]:
    """Return what descends from a node's raylet."""
    try:
        return psutil.Process(node.all_processes["raylet"][0].process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def title_of(process: psutil.Process) -> str:
    """Return the title of a process; empty if it is gone."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def settings_of(seed: int, sampler: str, trials: int, tracking: str) -> list[str]:
    """Return the overrides of a storm's sweep.

    What is compared with an undisturbed sweep runs all attacks: which of those on dominated trials are spared depends
    on how many stages were under way at once.
    """
    wanted = [f"search.trials={trials}", f"search.sampler={sampler}", f"search.seed={seed}", tracking]
    wanted += ["attacks.evaluate=all"] if sampler == "random" else []
    return [part for one in wanted for part in ("--set", one)]


def undisturbed(storage: Path, seed: int, trials: int) -> dict[str, Any]:
    """Run the same sweep without a storm, on local Ray and without pace; return its results."""
    storage.mkdir()
    (storage / f"{NAME}.yaml").write_text(SWEEP)
    settings = settings_of(seed, "random", trials, "tracking.enabled=false")
    driver = Driver(storage, "launch", f"{NAME}.yaml", "--name", NAME, "--storage", ".", *settings)
    assert driver.wait(PATIENCE_S) == 0, driver.text()
    ledger = Ledger.at(SweepFolder.existing(storage, NAME).ledger)
    try:
        return results(ledger)
    finally:
        ledger.close()


def assert_equal_to_reruns(ledger: Ledger) -> None:
    """Train and judge every trial again from its configuration and seed: weights and verdicts are the same."""
    from sweeps.config import parse_sweep
    from sweeps.foreground import run_trial
    from trainables.config import TrialConfig

    plan = parse_sweep(ledger.sweep().document).attacks
    for trial in ledger.trials():
        again = run_trial(TrialConfig.model_validate(trial.config), trial.seed, plan, lambda line: None)
        assert (again.weights_digest, again.clean_acc) == (trial.weights_digest, trial.clean_acc)
        verdicts = {stage.position: np.asarray(stage.verdicts).tolist() for stage in again.stages}
        for stage in ledger.stages(trial.number):
            if stage.split == "validation":
                assert np.asarray(stage.verdicts).tolist() == verdicts[stage.position]


def assert_weathered(storm: Storm) -> None:
    """The total is reached exactly, nothing is open, nothing was done twice, and no record contradicts another."""
    with storm.ledger() as ledger:
        found = status(ledger)
        assert (found["state"], found["open"]) == ("finished", [])
        trials = ledger.trials()
        assert [t.number for t in trials] == list(range(storm.trials))
        assert {t.state for t in trials} == {State.FINISHED}
        assert all(stage.state == "done" for stage in ledger.stages())
        assert ledger.lease() is None
        assert [item["trial"] for item in found["front"]] == slow_front(export_json(ledger)["trials"])
        assert_nothing_twice(ledger, storm.storage / NAME)
        assert_judged_once(storm.storage / NAME)
        assert_mirrored(ledger, f"sqlite:///{storm.server.database}")
        if storm.sampler == "random":
            assert results(ledger) == undisturbed(storm.storage / "calm", storm.seed, storm.trials)
        else:
            assert_equal_to_reruns(ledger)


def weather(seed: int, counts: dict[str, int], sampler: str, trials: int, say: Callable[[str], None]) -> Storm:
    """Let a sweep meet a storm and check it; an AssertionError says what was broken, and its folder stays.

    The undisturbed sweep runs beside the cluster, and must not join it.
    """
    storage = Path(tempfile.mkdtemp(prefix="storm"))
    say(f"storm {seed}: {sum(counts.values())} kills, {trials} trials, {sampler} sampler")
    with Storm(storage, seed, sampler, trials, say).running() as storm:
        strikes = draw(seed, counts)
        while strikes:
            is_too_early = strikes[0].kind == "server" and not storm.has_server and len(strikes) > 1
            storm.strike(strikes.pop(1 if is_too_early else 0))
        storm.end()
        say(f"    {time.monotonic() - storm.began:6.1f} s  100%  the sweep has ended")
        assert storm.kills == counts
        assert_weathered(storm)
    shutil.rmtree(storage)
    return storm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first storm")
    parser.add_argument("--storms", type=int, default=1, help="how many, with seeds one after the other")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--log", type=Path, help="also append what is said to this file")
    chosen = parser.parse_args()

    def say(line: str) -> None:
        print(line, flush=True)
        if chosen.log is not None:
            with chosen.log.open("a") as log:
                log.write(f"{line}\n")

    for seed in range(chosen.seed, chosen.seed + chosen.storms):
        began = time.monotonic()
        sampler = "random" if seed % 2 else "tpe"
        storm = weather(seed, OF_TWENTY, sampler, chosen.trials, say)
        equal = "an undisturbed sweep" if sampler == "random" else "reruns of its trials"
        attempts = "kills of " + ", ".join(f"{kind} {count}" for kind, count in sorted(storm.kills.items()))
        say(f"    {time.monotonic() - began:6.1f} s  weathered: {attempts}; all values equal {equal}, bit for bit")


if __name__ == "__main__":
    sys.exit(main())
