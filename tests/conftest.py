"""A strict session: silent broadcasting, untyped keys and keys used twice are errors."""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
import pytest

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
