"""A strict session: silent broadcasting, untyped keys and keys used twice are errors."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

# Compiling is most of the suite's time: tests, and the processes that they start, share what was compiled.
_COMPILED = tempfile.TemporaryDirectory(prefix="vaejax-compiled-")
os.environ |= {"JAX_COMPILATION_CACHE_DIR": _COMPILED.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_legacy_prng_key", "error")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def real_data() -> Path:
    """The folder of real images that `VAEJAX_DATA` names; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("VAEJAX_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real images: no folder {folder.name!r}; set VAEJAX_DATA")
    return folder


@pytest.fixture(scope="module")
def compiled_quickly() -> Iterator[None]:
    """For tests of many small programs: XLA does not optimise them."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
