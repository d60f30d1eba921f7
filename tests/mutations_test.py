"""Damaged files are read or refused, never more: two hundred mutations a format; `benchmarks/mutations.py` makes thousands."""

import os

import pytest

from benchmarks import mutations
from vaejax.datasets import isolation


@pytest.mark.parametrize("name", mutations.FORMATS)
def test_a_mutation_is_read_or_refused(name):
    result = mutations.run(name, 200, seed=1)
    assert result["broken"] == 0, result
    assert (
        min(result["read"], result["refused"]) > 5
    )  # some damage is none, and most is: of NPZ files, compressed and with sums, 10 are read


def test_what_breaks_the_promise_is_counted(monkeypatch):
    monkeypatch.setitem(mutations.FORMATS, "PNG", (mutations.of_png, misread))
    monkeypatch.setattr(mutations, "LIMITS", isolation.Limits(0.5, 2**30))
    result = mutations.run("PNG", 60, seed=0)
    assert result["broken"] == result["killed its reader (SIGABRT)"] + result["another error: KeyError"]
    assert result["broken"] + result["read"] + result["refused"] == 60


def misread(path):
    """Breaks at some files."""
    size = path.stat().st_size
    if size % 20 == 0:
        os.abort()
    if size % 4 == 1:
        raise KeyError(size)


def test_mutations_are_those_of_their_seed():
    origins = mutations.of_png(None)
    assert mutations.mutated(origins, 7, 0) == mutations.mutated(origins, 7, 0)
    assert len({mutations.mutated(origins, number, 0) for number in range(50)}) > 45
    assert mutations.mutated(origins, 7, 0) != mutations.mutated(origins, 7, 1)
