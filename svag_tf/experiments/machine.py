"""Describes the machine and the software of an experiment."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import svag_tf
from svag_tf import native

PACKAGES = (
    "tensorflow",
    "keras",
    "jax",
    "jaxlib",
    "optax",
    "torch",
    "pytorch_optimizer",
    "numpy",
)


def cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> int | None:
    """Returns the bytes of memory that are free or can be freed, if known."""
    return _kilobytes("MemAvailable")


def load() -> float | None:
    """Returns the load average of the last minute, if known."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def description() -> dict[str, Any]:
    """Describes the machine, its software, the commit and the time."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": cores(),
        "last_level_cache": _last_level_cache(),
        "memory": _kilobytes("MemTotal"),
        "load_at_start": load(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {"svag_tf": svag_tf.__version__, **_versions()},
        "native_update": native.status(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _commit() -> str | None:
    """Returns the short hash, with "+" if files differ from it; None if unknown.

    An installed package may lie in another repository, which does not track it.
    """
    git = ["git", "-C", str(Path(svag_tf.__file__).parent)]
    try:
        _, commit, changes = (
            subprocess.run(
                [*git, *arguments], capture_output=True, text=True, check=True
            ).stdout.strip()
            for arguments in (
                ("ls-files", "--error-unmatch", "__init__.py"),
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--untracked-files=no"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")


def _field(path: str, name: str) -> str | None:
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None


def _kilobytes(name: str) -> int | None:
    value = _field("/proc/meminfo", name)
    return int(value.split()[0]) * 1024 if value else None


def _last_level_cache() -> str | None:
    with contextlib.suppress(OSError):
        caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
        if caches:
            return caches[-1].read_text().strip()
    return None
