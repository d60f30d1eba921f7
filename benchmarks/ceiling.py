"""What this machine can do at most, measured, and what a train step asks of it, by XLA's count.

    python benchmarks/ceiling.py --dtype=float32

The ceiling is the best of several large products and copies, in JAX or in PyTorch, whichever is faster. On a CUDA device
float32 products run in TF32, as both sides' steps do.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # other sides use the same GPU

import jax
import jax.numpy as jnp
import torch

COPIED = 2**28
"""Bytes of the array that is copied: more than any cache holds."""
REPEATS = 12


class Ceiling(NamedTuple):
    """The most that was seen."""

    flops: float
    """Floating-point operations a second, of a matrix product."""
    bandwidth: float
    """Bytes read and written a second, of a copy."""


class Work(NamedTuple):
    """What a jitted function asks for."""

    flops: float
    """Operations of the program as it was written, a multiplication and an addition being two."""
    traffic: float
    """Bytes that the compiled program's parts read and write, if no cache held any."""

    def share(self, seconds: float, ceiling: Ceiling) -> float:
        """Of the ceiling of matrix products, in so much time."""
        return self.flops / seconds / ceiling.flops

    def told(self, seconds: float, ceiling: Ceiling) -> str:
        """What it comes to in so much time, and the share of the ceiling."""
        flops, bandwidth = self.flops / seconds, self.traffic / seconds
        return (
            f"{flops / 1e9:,.0f} GFLOP/s ({self.share(seconds, ceiling):.0%} of the ceiling), "
            f"{bandwidth / 1e9:,.1f} GB/s ({bandwidth / ceiling.bandwidth:.0%})"
        )


def work_of(function: Any, *arguments: Any) -> Work:
    """Of one call. Operations are counted before libraries' own kernels, which XLA cannot look into, replace any."""
    lowered = function.lower(*arguments)
    return Work(lowered.cost_analysis()["flops"], lowered.compile().cost_analysis()["bytes accessed"])


def measure(dtype: str) -> Ceiling:
    """The ceiling of the device that JAX and PyTorch choose by themselves."""
    size = 8_192 if torch.cuda.is_available() else 2_048
    products, copies = zip(_in_jax(dtype, size), _in_torch(dtype, size), strict=True)
    return Ceiling(2 * size**3 / min(map(_best, products)), 2 * COPIED / min(map(_best, copies)))


def choose_precision() -> torch.device:
    """PyTorch's device; there float32 may be TF32, which is JAX's default."""
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Until PyTorch's device has done all that it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _in_jax(dtype: str, size: int) -> tuple[Callable[[], None], Callable[[], None]]:
    a, long = jnp.ones((size, size), dtype), jnp.ones(COPIED // 4)
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1.0)
    return lambda: product(a, a).block_until_ready(), lambda: copy(long).block_until_ready()


def _in_torch(dtype: str, size: int) -> tuple[Callable[[], None], Callable[[], None]]:
    device = choose_precision()
    a, long = torch.ones(size, size, dtype=getattr(torch, dtype), device=device), torch.ones(COPIED // 4, device=device)
    product, other = torch.empty_like(a), torch.empty_like(long)

    def multiply() -> None:
        torch.matmul(a, a, out=product)
        wait()

    def copy() -> None:
        other.copy_(long)
        wait()

    return multiply, copy


def _best(work: Callable[[], None]) -> float:
    """Seconds of the fastest run, after one that does not count."""
    work()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrix product")
    ceiling = measure(parser.parse_args().dtype)
    print(f"{ceiling.flops / 1e9:,.0f} GFLOP/s, {ceiling.bandwidth / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
