"""Ray cluster files, for ``ray up``: machines of one's own, and AWS with spot workers. Plain data, no YAML here."""

from __future__ import annotations

import shlex
from typing import Any

from cluster.settings import ClusterSettings
from cluster.start_command import in_project, waiting_for, whole_command

PORT = 6379
TOKEN = "~/.ray/auth_token"
"""Where Ray looks for its token when nothing else is said; the file itself is copied by ``ray up``, never its text."""

KEPT_HERE = ["**/.git", "**/.venv", "**/runs", "**/__pycache__"]
"""What ``ray up`` does not copy to the nodes."""


def own_machines(settings: ClusterSettings) -> dict[str, Any]:
    """Return the cluster file of machines that are there: the head and the workers that `ray` lists."""
    ray = settings.ray
    auth = {"ssh_user": ray.ssh_user} | ({"ssh_private_key": ray.ssh_private_key} if ray.ssh_private_key else {})
    head_takes_trials = settings.head_takes_trials("ray")
    return {
        "cluster_name": settings.sweep.title,
        "max_workers": len(ray.workers),
        "provider": {"type": "local", "head_ip": ray.head, "worker_ips": list(ray.workers)},
        "auth": auth,
        **_nodes(settings),
        "setup_commands": [_secure(), *_install(settings)],
        "head_start_ray_commands": _start_head(settings, _resources(settings) if head_takes_trials else NO_TRIALS),
        "worker_start_ray_commands": _start_worker(settings, _resources(settings)),
    }


def aws(settings: ClusterSettings) -> dict[str, Any]:
    """Return the cluster file of a head that is paid in full, and of up to `nodes.count` workers."""
    cloud, nodes = settings.aws, settings.nodes
    market = {"InstanceMarketOptions": {"MarketType": "spot"}} if cloud.spot else {}
    head_takes_trials = settings.head_takes_trials("aws")
    sizes = {"CPU": nodes.cpus, "GPU": nodes.gpus}
    return {
        "cluster_name": settings.sweep.title,
        "max_workers": nodes.count,
        "idle_timeout_minutes": cloud.idle_minutes,
        "provider": {
            "type": "aws",
            "region": cloud.region,
            "availability_zone": ",".join(cloud.zones),
            "cache_stopped_nodes": False,
        },
        "auth": {"ssh_user": cloud.ssh_user},
        "available_node_types": {
            "head": {
                "resources": sizes if head_takes_trials else {"CPU": 0, "GPU": 0},
                "node_config": _instance(settings, cloud.head_type),
            },
            "workers": {
                "min_workers": cloud.min_workers,
                "max_workers": nodes.count,
                "resources": sizes,
                "node_config": _instance(settings, cloud.worker_type) | market,
            },
        },
        "head_node_type": "head",
        **_nodes(settings),
        "setup_commands": [_secure(), *_mount(settings), *_install(settings)],
        "head_start_ray_commands": _start_head(
            settings, () if head_takes_trials else NO_TRIALS, "--autoscaling-config=~/ray_bootstrap_config.yaml"
        ),
        "worker_start_ray_commands": _start_worker(settings, ()),
    }


NO_TRIALS = ("--num-cpus=0", "--num-gpus=0")


def sweep_command(settings: ClusterSettings, target: str) -> str:
    """Return the shell line that starts or resumes the sweep on the head. Args: target: ray or aws."""
    workers = len(settings.ray.workers) if target == "ray" else settings.nodes.count
    waiting = waiting_for(settings, workers, settings.head_takes_trials(target))
    command = shlex.join(whole_command(settings, "auto", *waiting))
    return f"export RAY_AUTH_MODE=token && {in_project(settings, command)}"


def _nodes(settings: ClusterSettings) -> dict[str, Any]:
    return {
        "file_mounts": {TOKEN: TOKEN, settings.sweep.project: "."},
        "rsync_exclude": KEPT_HERE,
        "rsync_filter": [".gitignore"],
    }


def _secure() -> str:
    return f"chmod 600 {TOKEN}"


def _install(settings: ClusterSettings) -> list[str]:
    if not settings.nodes.install:
        return []
    return [" && ".join((f"cd {shlex.quote(settings.sweep.project)}", *settings.nodes.install))]


def _mount(settings: ClusterSettings) -> list[str]:
    cloud = settings.aws
    if cloud.file_system is None:
        return []
    place = shlex.quote(cloud.shared)
    source = f"{cloud.file_system}.efs.{cloud.region}.amazonaws.com:/"
    options = "nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport"
    storage = shlex.quote(settings.sweep.storage)
    return [
        f"sudo mkdir -p {place}",
        f"mountpoint -q {place} || sudo mount -t nfs4 -o {options} {source} {place}",
        f'sudo mkdir -p {storage} && sudo chown "$(id -u):$(id -g)" {storage}',
    ]


def _instance(settings: ClusterSettings, kind: str) -> dict[str, Any]:
    disk = {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": settings.aws.disk_gb, "VolumeType": "gp3"}}
    return {"InstanceType": kind, "ImageId": settings.aws.image, "BlockDeviceMappings": [disk]}


def _resources(settings: ClusterSettings) -> tuple[str, ...]:
    nodes = settings.nodes
    memory = (f"--memory={nodes.memory_gb * 10**9}",) if nodes.memory_gb else ()
    return (f"--num-cpus={nodes.cpus}", f"--num-gpus={nodes.gpus}", *memory)


def _start_head(settings: ClusterSettings, resources: tuple[str, ...], *more: str) -> list[str]:
    options = " ".join((f"--port={PORT}", "--dashboard-host=127.0.0.1", *resources, *more))
    return ["ray stop", in_project(settings, f"ulimit -n 65536 && RAY_AUTH_MODE=token ray start --head {options}")]


def _start_worker(settings: ClusterSettings, resources: tuple[str, ...]) -> list[str]:
    options = " ".join((f'--address="$RAY_HEAD_IP:{PORT}"', *resources))
    return ["ray stop", in_project(settings, f"ulimit -n 65536 && RAY_AUTH_MODE=token ray start {options}")]
