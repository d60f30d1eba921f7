"""How much memory is left: the accelerator's own, or of the machine, or of the container that it is."""

from pathlib import Path

import jax

MACHINE = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")
LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""What a container may take, what it has, and what of that is files that can be dropped; control groups of version 2 and 1."""


def available() -> int | None:
    """Bytes that can still be taken where arrays live; None where nobody says."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return of_host()
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None


def of_host() -> int | None:
    """What the machine can give without swapping, or less where a container is allowed less (Linux)."""
    left = []
    if MACHINE.exists():
        lines = dict(line.split(":") for line in MACHINE.read_text().splitlines())
        left.append(int(lines["MemAvailable"].split()[0]) * 1024)
    for limit, used, statistics, cache in LIMITS:
        if (CONTAINER / limit).exists():
            most = (CONTAINER / limit).read_text().strip()
            lines = dict(line.split() for line in (CONTAINER / statistics).read_text().splitlines())
            held = int((CONTAINER / used).read_text()) - int(lines.get(cache, 0))
            left += [] if most == "max" else [max(int(most) - held, 0)]
    return min(left, default=None)
