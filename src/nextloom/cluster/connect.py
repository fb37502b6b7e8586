"""Connecting to Ray: a local instance by default, a cluster by address.

A local instance is for this machine's user alone: it listens on the loopback address and asks for a token that only
this run and its workers know. Workers look for modules where this process does, but never first in the working
directory: what lies there (a stranger's `duckdb.py`) is not code of ours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "GOMP_SPINCOUNT": "30000",  # threads that spin longer at barriers starve the other workers of a small machine
}
NOISE = b"Set ray log level from environment variable"


class _OwnPath(list):
    """The search path that Ray gives its workers, to which the working directory cannot be added."""

    def extend(self, _: Any) -> None:
        pass


def connect(address: str | None = None) -> int:
    """Start or join Ray unless this process has it already; returns the number of CPUs for work.

    A local instance has two logical CPUs more than the machine, so that Ray's own small tasks never wait for the
    worker pool.

    Args:
        address: of a running cluster ("auto", "ray://host:port"); None starts a local one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        with _own_sigterm(), _without_noise():
            if address is None:
                _start(cores)
            else:
                config = {} if address.startswith("ray://") else {"job_config": _job_config()}
                ray.init(address=address, log_to_driver=False, logging_level="error", **config)
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what fails reaches the caller as an exception or a row
    return cores if address is None else int(ray.cluster_resources().get("CPU", 1))


def _start(cores: int) -> None:
    """A local instance that listens on 127.0.0.1 and wants a token, which only what this process starts knows.

    It has no dashboard, autoscaler and log monitor, which nothing here uses: their start takes as long as the rest.
    """
    import ray
    from ray._private import node, parameter, ray_constants
    from ray._raylet import AuthenticationTokenLoader, Config

    class Parameters(parameter.RayParams):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "include_log_monitor": False, "no_monitor": True})

    os.environ["RAY_AUTH_MODE"] = "token"
    if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    Config.initialize("")  # both were read when ray was imported
    AuthenticationTokenLoader.instance().reset_cache()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_set(ray_constants, "ENABLE_RAY_CLUSTER", False))  # or it takes all addresses
        stack.enter_context(_set(parameter, "RayParams", Parameters))
        stack.enter_context(_set(node.Node, "start_api_server", lambda *_, **__: None))
        ray.init(
            address="local",
            num_cpus=cores + 2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=512 * 2**20,
            job_config=_job_config(),
        )


@contextlib.contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute with another value for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _job_config() -> Any:
    """What Ray is told of this job: to add nothing to the search path of its workers."""
    from ray.job_config import JobConfig

    config = JobConfig()
    config._py_driver_sys_path = _OwnPath()
    return config


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's way to end: Ray puts in a handler of its own, which dumps a stack and aborts."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Hold back what Ray's C++ parts write to stderr as they start; what is not their log level is written after."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(kept, 2)
                held.seek(0)
                lines = [line for line in held.read().splitlines(keepends=True) if NOISE not in line]
                os.write(2, b"".join(lines))
    finally:
        os.close(kept)
