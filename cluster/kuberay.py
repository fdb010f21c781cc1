"""The Kubernetes start: a RayJob, whose cluster lives as long as the sweep and is made anew where it was lost."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePosixPath
from typing import Any

from cluster.settings import ClusterSettings
from cluster.start_command import waiting_for, whole_command

KEPT_S = 600
"""How long the pods of a sweep that has ended stay, for a look at their logs."""


def ray_job(settings: ClusterSettings, ray_version: str) -> dict[str, Any]:
    """Return the RayJob as plain data. Args: ray_version: of the image, which has this project's."""
    kube, nodes = settings.kuberay, settings.nodes
    waiting = waiting_for(settings, nodes.count, settings.head_takes_trials("kuberay"))
    # a sweep that is finished with failed trials ends with 1, and a new cluster would find nothing to do
    command = whole_command(_absolute(settings), "auto", *waiting, "--accept-failed")
    command[1] = f"{settings.sweep.project}/{command[1]}"
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job_name(settings.sweep.title), "namespace": kube.namespace},
        "spec": {
            "entrypoint": shlex.join(command),
            "submissionMode": "K8sJobMode",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEPT_S,
            "backoffLimit": kube.retries,
            "rayClusterSpec": {
                "rayVersion": ray_version,
                "authOptions": {"mode": "token"},
                **_scaling(settings),
                "headGroupSpec": _head(settings),
                "workerGroupSpecs": [_workers(settings)],
            },
        },
    }


def job_name(title: str) -> str:
    """Return a sweep's name as Kubernetes allows it: ``Quick_start.2`` → ``quick-start-2``, 40 signs at most."""
    name = re.sub(r"[^a-z0-9]+", "-", title.lower())[:40].strip("-")
    return name if name[:1].isalpha() else f"sweep-{name}"


def _absolute(settings: ClusterSettings) -> ClusterSettings:
    """Ray starts a job's command in a folder of its own choice."""
    sweep = settings.sweep
    file = str(PurePosixPath(sweep.project) / sweep.file)
    return settings.model_copy(update={"sweep": sweep.model_copy(update={"file": file, "name": sweep.title})})


def _scaling(settings: ClusterSettings) -> dict[str, Any]:
    if settings.kuberay.min_workers is None:
        return {}
    return {"enableInTreeAutoscaling": True, "autoscalerOptions": {"idleTimeoutSeconds": settings.kuberay.idle_s}}


def _head(settings: ClusterSettings) -> dict[str, Any]:
    kube, nodes = settings.kuberay, settings.nodes
    if settings.head_takes_trials("kuberay"):
        size = _size(settings, nodes.cpus, _memory_gb(settings), nodes.gpus)
        return {"rayStartParams": {"num-cpus": str(nodes.cpus)}, "template": _pod(settings, "ray-head", size)}
    size = _size(settings, kube.head_cpus, kube.head_memory_gb, 0)
    return {"rayStartParams": {"num-cpus": "0", "num-gpus": "0"}, "template": _pod(settings, "ray-head", size)}


def _workers(settings: ClusterSettings) -> dict[str, Any]:
    kube, nodes = settings.kuberay, settings.nodes
    labels = dict(kube.node_labels) | ({kube.spot_label: "true"} if kube.spot_label else {})
    tolerations = []
    if nodes.gpus:
        tolerations.append({"key": kube.gpu_resource, "operator": "Exists", "effect": "NoSchedule"})
    if kube.spot_label:
        spot = {"key": kube.spot_label, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        tolerations.append(spot)
    template = _pod(settings, "ray-worker", _size(settings, nodes.cpus, _memory_gb(settings), nodes.gpus))
    template["spec"] |= {"nodeSelector": labels} if labels else {}
    template["spec"] |= {"tolerations": tolerations} if tolerations else {}
    minimum = nodes.count if kube.min_workers is None else kube.min_workers
    return {
        "groupName": "workers",
        "replicas": minimum,
        "minReplicas": minimum,
        "maxReplicas": nodes.count,
        "rayStartParams": {"num-cpus": str(nodes.cpus), "num-gpus": str(nodes.gpus)},
        "template": template,
    }


def _pod(settings: ClusterSettings, container: str, size: dict[str, str]) -> dict[str, Any]:
    kube = settings.kuberay
    shared = {"name": "shared", "mountPath": kube.shared}
    memory = {"name": "shared-memory", "mountPath": "/dev/shm"}  # Ray's object store; a pod's own has 64 MB
    spec: dict[str, Any] = {
        "containers": [
            {
                "name": container,
                "image": kube.image,
                "workingDir": settings.sweep.project,
                "resources": {"requests": dict(size), "limits": dict(size)},
                "volumeMounts": [shared, memory],
            }
        ],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": kube.claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    return {"spec": spec | ({"serviceAccountName": kube.service_account} if kube.service_account else {})}


def _size(settings: ClusterSettings, cpus: int, memory_gb: int, gpus: int) -> dict[str, str]:
    size = {"cpu": str(cpus), "memory": f"{memory_gb}G"}
    return size | ({settings.kuberay.gpu_resource: str(gpus)} if gpus else {})


def _memory_gb(settings: ClusterSettings) -> int:
    return settings.nodes.memory_gb or 4 * settings.nodes.cpus
