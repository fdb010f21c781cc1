"""MLflow's pages for a sweep: deep links, a ready-made Pareto view, and a local server to look at them.

The view's format belongs to MLflow's frontend and is not documented (written for 3.17): nothing depends on it, and the
plain links and the report show the same.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from search_spaces.errors import SweepError
from sweeps.mirrored import LOADED_RUNS, is_cut, param_names
from sweeps.records import SweepRecord
from sweeps.snapshot import Snapshot

LONGEST_VIEW = 20_000
"""Characters of an experiment's tag."""


def links(sweep: SweepRecord, tracking_base_url: str, front_runs: Sequence[str] = ()) -> dict[str, str]:
    """Return name → address of the sweep's pages; empty before MLflow has seen the sweep.

    Args:
        tracking_base_url: of the MLflow server, ``http://127.0.0.1:5000``; empty gives links that work inside it. A
            name and password in it are left out: a browser asks for its own.
        front_runs: run ids of the front, to be compared; of more than MLflow compares at once, the first.
    """
    if sweep.mlflow_experiment_id is None or sweep.mlflow_run_id is None:
        return {}
    server = re.sub(r"://[^/@]*@", "://", tracking_base_url).rstrip("/")
    base = f"{server}/#" if server else "#"
    experiment = f"{base}/experiments/{sweep.mlflow_experiment_id}"
    classic = {"workflowType": "machine_learning"}  # without it MLflow shows the pages for language models
    view = {"viewStateShareKey": view_key(sweep), **classic}
    listing = {
        "searchFilter": trials_filter(sweep),
        "orderByKey": "metrics.`clean_acc`",
        "orderByAsc": "false",
        **classic,
    }
    pages = {
        "Pareto view": f"{experiment}/runs?{_query({**view, 'compareRunsMode': 'CHART'})}",
        "table": f"{experiment}/runs?{_query(view)}",
        "trials": f"{experiment}/runs?{_query(listing)}",
        "sweep": f"{experiment}/runs/{sweep.mlflow_run_id}?{_query(classic)}",
    }
    if len(front_runs) > 1:
        chosen = {"runs": list(front_runs)[:LOADED_RUNS], "experiments": [sweep.mlflow_experiment_id]}
        asked = {name: json.dumps(ids) for name, ids in chosen.items()}
        pages["compare the front"] = f"{base}/compare-runs?{_query({**asked, **classic})}"
    return pages


def _query(values: Mapping[str, str]) -> str:
    return urlencode(values, quote_via=quote)


def trials_filter(sweep: SweepRecord) -> str:
    """Return MLflow's search for the trials of a sweep."""
    return f"tags.`sweep.id` = '{sweep.id}' AND tags.`sweep.role` = 'trial'"


def view_key(sweep: SweepRecord) -> str:
    """Return the name of the sweep's view, by which the link finds it."""
    return f"pareto-{sweep.id[:8]}"


def pareto_view(snapshot: Snapshot) -> tuple[str, str]:
    """Return tag and value of the experiment's saved view: the scatter of clean against robust accuracy first.

    A chart of parallel coordinates per method follows: MLflow leaves out runs that lack one of its parameters.
    """
    charts = [_scatter(snapshot.vertical), *_parallels(snapshot)]
    while len(value := _envelope(snapshot, charts)) > LONGEST_VIEW and len(charts) > 1:
        charts.pop()
    return f"mlflow.sharedViewState.{view_key(snapshot.sweep)}", value


def _envelope(snapshot: Snapshot, charts: list[dict[str, Any]]) -> str:
    names = dict.fromkeys(name for t in snapshot.trials for name in param_names(t).values())
    front_only = " AND tags.`trial.pareto` = 'true'"
    metrics = ("clean_acc", "robust_acc", "test_clean_acc", "test_robust_acc")
    state = {
        "searchFilter": trials_filter(snapshot.sweep) + (front_only if is_cut(snapshot) else ""),
        "orderByKey": "metrics.`clean_acc`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [
            "tags.`method`",
            *(f"metrics.`{name}`" for name in metrics),
            "tags.`trial.robust`",
            "tags.`trial.pareto`",
            *(f"params.`{name}`" for name in names),
        ],
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "compareRunSections": [
            _section("front", _front_title(snapshot), 520),
            _section("parameters", "Parameters by method", 420),
        ],
        "compareRunCharts": charts,
    }
    at = int(snapshot.sweep.created_at * 1000)
    envelope = {"name": f"Pareto front of {snapshot.sweep.name}", "createdAt": at, "updatedAt": at}
    return json.dumps({**envelope, "state": json.dumps(state)})


def _front_title(snapshot: Snapshot) -> str:
    """About thirty characters; MLflow cuts what is longer."""
    return f"Only the front of {len(snapshot.trials)} trials" if is_cut(snapshot) else "Front and all other trials"


def _section(uuid: str, name: str, height: int) -> dict[str, Any]:
    flags = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": uuid, "name": name, "columns": 1, "cardHeight": height, **flags}


def _scatter(up: str) -> dict[str, Any]:
    axes = {axis: {"key": key, "type": "METRIC"} for axis, key in (("xaxis", "clean_acc"), ("yaxis", up))}
    return {**_chart("scatter", "SCATTER", "front"), **axes}


def _parallels(snapshot: Snapshot) -> list[dict[str, Any]]:
    """One chart per method, except where another one's chart has the same parameters and more."""
    names: dict[str, list[str]] = {}
    for trial in snapshot.trials:
        found = names.setdefault(trial.label, [])
        found += [n for key, n in param_names(trial).items() if n not in found and trial.params[key] != trial.label]
    chosen = {
        label: mine
        for label, mine in names.items()
        if mine and not any(set(mine) < set(others) for others in names.values())
    }
    shown = {"selectedMetrics": ["clean_acc", snapshot.vertical], "showAllRuns": True}
    return [
        {**_chart(f"parallel-{label}", "PARALLEL", "parameters"), "selectedParams": mine, **shown}
        for label, mine in chosen.items()
    ]


def _chart(uuid: str, kind: str, section: str) -> dict[str, Any]:
    flags = {"runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    return {"type": kind, "uuid": uuid, "metricSectionId": section, **flags}


def start_ui(uri: str, port: int | None = None, timeout_s: float = 60.0) -> tuple[subprocess.Popen[bytes], str]:
    """Start MLflow's server over a database on 127.0.0.1 and return it with its address, once it answers.

    End it with `stop_ui`. SweepError if the port is taken, or the server ends by itself or does not answer in time.
    """
    port = _bindable(port or 0)
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its scorers and their queue are of no use to a sweep
    }
    server = subprocess.Popen(
        [*command, "--port", str(port), "--workers", "1"],
        env={**quiet, **os.environ},
        cwd=_folder_of(uri),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_until_healthy(server, address, time.monotonic() + timeout_s)
    except BaseException:
        stop_ui(server)
        raise
    return server, address


def stop_ui(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers."""
    for step in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, step)
            server.wait(timeout=5)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    server.wait()


def _folder_of(uri: str) -> Path | None:
    """The database's folder; the server leaves files of its own in its working folder."""
    path = Path(uri.removeprefix("sqlite:///"))
    return path.parent if uri.startswith("sqlite:///") and path.parent.is_dir() else None


def _bindable(port: int) -> int:
    """Return the port, or for 0 any free one; tried here, because another server there would answer in our name."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SweepError(
                f"port {port} of 127.0.0.1 cannot be used ({error.strerror}); choose another one."
            ) from error
        return int(probe.getsockname()[1])


def _wait_until_healthy(server: subprocess.Popen[bytes], address: str, deadline: float) -> None:
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SweepError(f"MLflow's server for {address} ended with code {server.returncode}.")
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise SweepError(f"MLflow's server does not answer at {address}.")
