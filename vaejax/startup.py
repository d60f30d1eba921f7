"""What the program sets before anything slow is imported: where compiled programs are kept, how memory is taken."""

import hashlib
import os
import platform
import sys
from pathlib import Path

from vaejax import storage

OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Linux: to which programs huge pages are given."""

_TUNABLES, _HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_FIRST = (2, 35)
"""The glibc that first had that tunable."""


def in_huge_pages() -> None:
    """Starts this program anew, in its own place, with huge pages for large arrays; not where it has them, or cannot.

    On a CPU, XLA takes the intermediate arrays of each step from the system and gives them back. The first touch of each small
    page then costs a fault: 156,000 of them and a quarter of a step of the ResNet of docs/performance.md. The C library's
    allocator asks for huge pages if it is told so, which it reads only as a program starts. With another allocator, or
    where Linux gives them to all or to none, nothing is done; `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` forbids it.
    """
    tunables = os.environ.get(_TUNABLES, "")
    if _HUGE in tunables or not _can_have_huge_pages():
        return
    os.environ[_TUNABLES] = ":".join([*filter(None, [tunables]), f"{_HUGE}=1"])
    os.execv(sys.executable, sys.orig_argv)


def _can_have_huge_pages() -> bool:
    library, _, number = _c_library().partition(" ")
    if library != "glibc" or tuple(int(part) for part in number.split(".")) < _FIRST:
        return False
    return OFFERED.exists() and "[madvise]" in OFFERED.read_text()


def _c_library() -> str:
    """Such as "glibc 2.36"; "" where it is none that tells."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError, OSError):  # another system, another library
        return ""


def set_environment() -> None:
    """Settings of JAX and TensorFlow that the environment leaves open.

    Compiled programs are kept for the next command, unless the environment says where, or nowhere (""). A program may use
    whatever the processor has that it was compiled on, so the folder is named by the processor: a home is often shared by many
    machines.

    TensorFlow imports Keras, a third of its own time, for nobody here: asked for the old one, which is seldom installed, it
    imports none.
    """
    processor = Path("/proc/cpuinfo")
    lines = processor.read_text().splitlines() if processor.exists() else [platform.processor(), platform.machine()]
    able = next((line for line in lines if line.startswith(("flags", "Features"))), " ".join(lines[:2]))
    folder = storage.home() / f"compiled-{hashlib.sha256(able.encode()).hexdigest()[:16]}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # its start-up notes help nobody
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
