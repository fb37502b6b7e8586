"""Connecting to Ray: a local instance by default, a cluster by address."""

from __future__ import annotations

import logging
import os

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "GOMP_SPINCOUNT": "30000",  # threads that spin longer at barriers starve the other workers of a small machine
}


def connect(address: str | None = None) -> int:
    """Start or join Ray unless this process has it already; returns the number of CPUs for work.

    A local instance has two logical CPUs more than the machine, so that Ray's own small tasks never wait for the
    worker pool (on two cores a pool of two would otherwise stall the pipeline).

    Args:
        address: of a running cluster ("auto", "ray://host:port"); None starts a local one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if address is None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        if address is None:
            ray.init(
                address="local",
                num_cpus=cores + 2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                object_store_memory=512 * 2**20,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level="error")
    import ray.data  # its import sets up loggers of its own, which we then turn down

    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails reaches the caller as an exception or a row
    return cores if address is None else int(ray.cluster_resources().get("CPU", 1))
