from __future__ import annotations

import json
import os
import socket
import urllib.request
from dataclasses import replace
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from search_spaces.errors import SweepError
from sweeps.folder import SweepFolder
from sweeps.lease import Lease
from sweeps.ledger import Ledger
from sweeps.mirrored import sweep_note
from sweeps.snapshot import Snapshot
from sweeps.tracking import Mirror
from sweeps.tracking_ui import LONGEST_VIEW, links, pareto_view, start_ui, stop_ui


def test_links_are_complete_addresses(unfinished: Ledger) -> None:
    assert links(unfinished.sweep(), "http://host") == {}
    with Lease(unfinished):
        unfinished.note_mlflow_sweep("http://host", "7", "run0")
    found = links(unfinished.sweep(), "http://host:5000/", ["a", "b"])
    assert found["sweep"] == "http://host:5000/#/experiments/7/runs/run0?workflowType=machine_learning"
    pareto = parse_qs(urlsplit(found["Pareto view"]).fragment.partition("?")[2])
    assert pareto["compareRunsMode"] == ["CHART"]
    assert f"mlflow.sharedViewState.{pareto['viewStateShareKey'][0]}" == pareto_view(Snapshot.read(unfinished))[0]
    trials = parse_qs(urlsplit(found["trials"]).fragment.partition("?")[2])
    assert unfinished.sweep().id in trials["searchFilter"][0]
    assert 'runs=["a", "b"]&experiments=["7"]' in unquote(found["compare the front"])
    assert "compare the front" not in links(unfinished.sweep(), "", ["a"])
    assert links(unfinished.sweep(), "https://ann:s3cret@host/ml")["sweep"].startswith("https://host/ml/#/experiments")
    many = [f"run{number}" for number in range(150)]
    assert unquote(links(unfinished.sweep(), "", many)["compare the front"]).count('"run') == 100
    assert links(unfinished.sweep(), "")["sweep"].startswith("#/experiments/7/")


def test_the_view_fits_into_a_tag_and_has_a_chart_per_method(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    _, value = pareto_view(snapshot)
    state = json.loads(json.loads(value)["state"])
    assert len(value) <= LONGEST_VIEW
    assert [chart["uuid"] for chart in state["compareRunCharts"]] == [
        "scatter",
        "parallel-jasmin",
        "parallel-adversarial",
    ]
    assert "params.`jasmin.k`" in state["selectedColumns"]


def test_the_view_of_more_trials_than_mlflow_draws_has_the_front_alone_and_says_so(unfinished: Ledger) -> None:
    snapshot = Snapshot.read(unfinished)
    crowded = replace(snapshot, trials=snapshot.trials * 13)
    _, value = pareto_view(crowded)
    state = json.loads(json.loads(value)["state"])
    assert state["searchFilter"].endswith("AND tags.`trial.pareto` = 'true'")
    assert state["compareRunSections"][0]["name"] == "Only the front of 104 trials"
    assert "Pareto view has the front only" in sweep_note(crowded, {})
    assert "trial.pareto`" not in json.loads(json.loads(pareto_view(snapshot)[1])["state"])["searchFilter"]


@pytest.mark.slow
def test_the_server_answers_and_ends(finished: Ledger, folder: SweepFolder, store: str) -> None:
    with Lease(finished):
        Mirror(finished, folder, None, "paretune").sync()
        before = [t.mlflow_run_id for t in finished.trials()]
    server, address = start_ui(store)
    try:
        with urllib.request.urlopen(address, timeout=10) as page:
            assert b"MLflow" in page.read()
        over_http = Mirror(finished, folder, address, "paretune")
        with Lease(finished):
            over_http.sync()
        assert [t.mlflow_run_id for t in finished.trials()] == before
    finally:
        stop_ui(server)
    assert server.returncode is not None
    with pytest.raises(ProcessLookupError):
        os.killpg(server.pid, 0)


@pytest.mark.slow
def test_a_server_that_cannot_start_says_so() -> None:
    with pytest.raises(SweepError, match="ended with code"):
        start_ui("nosuchstore://x")


def test_a_port_that_is_taken_is_not_waited_for(store: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SweepError, match=f"port {port} .* cannot be used"):
            start_ui(store, port)
