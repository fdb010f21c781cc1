"""Starting or joining Ray, quietly, with the settings that make Tune a disposable executor."""

from __future__ import annotations

import logging
import math
import os
import socket
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.authentication import agree, guard_local
from cluster.draining import staying_nodes
from cluster.packing import Device, Node
from cluster.resources import GB, Shares, as_told
from cluster.room import ACCELERATOR
from cluster.versions import ALLOCATOR, carried
from search_spaces.errors import ClusterError

REACH_S = 5.0
"""The head of a cluster answers within so many seconds, or it is not there (our choice)."""

_ENVIRONMENT = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # the driver has handlers of its own; Tune's would end fit() as if it were done
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000000",  # the ledger is the only state
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_THRESHOLD_S": "60",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "600000",  # after Ray's 1 s every attack would import torch again
    "MLFLOW_CONFIGURE_LOGGING": "false",  # Tune imports MLflow to count callbacks, before our mirror does
    **ALLOCATOR,
}


def prepare_environment() -> None:
    """Set what Ray and Tune read when they are imported; a value that the user has set stays."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect(
    address: str | None,
    plan: Callable[[Sequence[Node]], Shares],
    log: Path,
    say: Callable[[str], None] = lambda text: None,
) -> Shares:
    """Join the cluster at `address`, or start a local one with room for the trials and the evaluation beside them.

    Args:
        plan: decides the shares from the nodes that there are.
        log: file for Ray's and Tune's own messages.
        say: takes a line about the cluster's token, where there is something to say.

    A cluster that this process has already joined is used as it is.
    """
    redirect_logging(log)
    import ray

    if address is not None and not ray.is_initialized():
        require_reachable(address)
        agree(address, say)
    if address is None and not ray.is_initialized():
        machine = this_machine()
        shares = plan([machine])
        guard_local(say)
        _init(address="local", num_cpus=max(1, math.ceil(as_told(machine, shares).cpus)), include_dashboard=False)
    else:
        if not ray.is_initialized():
            _init(address=address, runtime_env=carried())
        shares = plan(joined_nodes(staying_nodes()))
    redirect_logging(log)  # again: ray.init() gives its logger a handler of its own
    # With Tune's default of 1 for custom searchers, trials shorter than a worker's start run one at a time. How many
    # train at once the searcher says, and that may grow.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1000")
    return shares


def require_reachable(address: str) -> None:
    """Raise ClusterError if nothing listens at HOST:PORT: Ray itself would try for minutes.

    Whatever else may be an address (auto, local) is left to Ray.
    """
    if address.startswith("ray://"):
        raise ClusterError(f"--address {address}: expected HOST:PORT, without ray://, on a machine of the cluster.")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"--address {address}: no Ray cluster answers there ({error}). Expected HOST:PORT of a head node, as "
            "`ray start --head` prints it, or auto on one of its nodes; without --address a local Ray is started."
        ) from error


def _init(**options: Any) -> None:
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ray.init(log_to_driver=False, logging_level="WARNING", **options)
        except ConnectionError as error:
            raise ClusterError(
                f"--address {options['address']}: Ray cannot join it ({str(error).splitlines()[0]}). On a node of a "
                "cluster auto finds it; without --address a local Ray is started."
            ) from error
    _keep_quiet()


def _keep_quiet() -> None:
    """Send what Ray prints about dead workers and nodes to its log: `log_to_driver` leaves it, and nothing else can."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):  # private: where it is gone, the terminal is less quiet
        worker.print_to_stdstream = _log_lines


def _log_lines(data: dict[str, Any], **_: Any) -> None:
    logging.getLogger("ray").warning("(%s) %s", data.get("pid"), "\n".join(data.get("lines", ())))


def this_machine() -> Node:
    """Return this machine: the CPUs that this process may use, and its CUDA devices."""
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory
        kind = f"{torch.cuda.get_device_name(index)} {round(memory / GB)} GB"
        devices.append(Device("this machine", index, kind, memory))
    return Node("this machine", float(len(os.sched_getaffinity(0))), tuple(devices), started_here=True)


class _LogFile(logging.FileHandler):
    """Where a line cannot be written, because the disk is full or gone, it is lost: the driver says that itself."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Print nothing; logging's own prints a traceback to the terminal."""


def redirect_logging(log: Path) -> None:
    """Send the libraries' messages to a file instead of the terminal."""
    handler = _LogFile(log)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("ray", "optuna", "mlflow", "alembic", "paretune", "py.warnings"):
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            logger.removeHandler(old)
            if isinstance(old, _LogFile):
                old.close()
        logger.addHandler(handler)
        logger.propagate = False
    logging.captureWarnings(True)


def joined_nodes(listed: Sequence[Mapping[str, Any]]) -> list[Node]:
    """Return the living nodes of a cluster, as ``ray.nodes()`` lists them; the memory of their GPUs is not known."""
    nodes = []
    for entry in (entry for entry in listed if entry.get("Alive")):
        has = entry.get("Resources", {})
        name = f"{entry.get('NodeManagerHostname', 'node')} {entry['NodeID'][:8]}"
        kind = next((key.partition(":")[2] for key in has if key.startswith(ACCELERATOR)), "GPU")
        accelerator = "" if kind == "GPU" else kind
        devices = tuple(Device(name, i, kind, accelerator=accelerator) for i in range(int(has.get("GPU", 0))))
        nodes.append(Node(name, float(has.get("CPU", 0)), devices))
    return nodes
