"""The process in which `doctor` starts or joins Ray; ``python -m sweeps.doctor_ray [ADDRESS]`` prints one object."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from search_spaces.errors import SweepError


def answer(address: str | None) -> dict[str, Any]:
    """Start or join Ray, run one task there, and leave; return `RayFacts` without what its caller knows."""
    from cluster.authentication import agree, guard_local, source_of
    from cluster.connect import prepare_environment, require_reachable

    prepare_environment()
    import ray

    said: list[str] = []
    try:
        if address is None:
            guard_local(said.append)
            ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        else:
            require_reachable(address)
            agree(address, said.append)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        ray.get(ray.remote(num_cpus=0)(_here).remote())
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        asks = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
        ray.shutdown()
    except (SweepError, ConnectionError, ray.exceptions.RayError) as error:
        return {"problem": str(error).splitlines()[0], "nodes": 0, "token": "", "said": said}
    return {"problem": "", "nodes": nodes, "token": source_of(os.environ) if asks else "", "said": said}


def _here() -> int:
    """Return the number of a worker's process: a task that shows that tasks run."""
    return os.getpid()


if __name__ == "__main__":
    print(json.dumps(answer(sys.argv[1] if len(sys.argv) > 1 else None)))
