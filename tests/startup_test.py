"""What is set before anything slow is imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vaejax import startup

ROOT = Path(__file__).parents[1]


def _python(code: str, *arguments: str, **environment: str) -> str:
    """What a program of its own prints, started with nothing of this one's settings."""
    kept = {name: value for name, value in os.environ.items() if name not in ("GLIBC_TUNABLES", "TF_USE_LEGACY_KERAS")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
    )
    return done.stdout


@pytest.fixture
def started(monkeypatch, tmp_path):
    """What would be started, on a system that gives huge pages to those that ask."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda *call: calls.append(call))
    monkeypatch.setattr(startup, "OFFERED", tmp_path / "enabled")
    monkeypatch.setattr(startup, "_c_library", lambda: "glibc 2.36")
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    startup.OFFERED.write_text("always [madvise] never\n")
    return calls


def test_a_program_starts_anew_once_with_its_own_arguments(started):
    startup.in_huge_pages()
    assert started == [(sys.executable, sys.orig_argv)]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    startup.in_huge_pages()
    assert len(started) == 1


def test_other_tunables_stay(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    startup.in_huge_pages()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("library", ["", "glibc 2.34", "musl 1.2.4"])
def test_a_c_library_that_cannot_ask_for_them_is_left_alone(started, monkeypatch, library):
    monkeypatch.setattr(startup, "_c_library", lambda: library)
    startup.in_huge_pages()
    assert not started


@pytest.mark.parametrize("offered", ["[always] madvise never", "always madvise [never]", None])
def test_a_system_that_gives_them_to_all_or_none_is_left_alone(started, offered):
    startup.OFFERED.unlink() if offered is None else startup.OFFERED.write_text(offered)
    startup.in_huge_pages()
    assert not started


def test_who_forbids_them_has_none(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    startup.in_huge_pages()
    assert not started


def test_the_c_library_tells_its_name_or_nothing(monkeypatch):
    for error in (ValueError, OSError, AttributeError):

        def confstr(_: str, error: type[Exception] = error) -> str:
            raise error

        monkeypatch.setattr(os, "confstr", confstr, raising=False)
        assert startup._c_library() == ""


def test_the_new_program_has_the_old_one_s_arguments():
    code = "import json, os, sys; from vaejax import startup; startup.in_huge_pages(); "
    code += "print(json.dumps([sys.argv[1:], os.environ.get('GLIBC_TUNABLES')]))"
    arguments, tunables = json.loads(_python(code, "a b", "--c=d"))
    assert arguments == ["a b", "--c=d"]
    assert tunables == ("glibc.malloc.hugetlb=1" if startup._can_have_huge_pages() else None)


def test_compiled_programs_are_kept_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    startup.set_environment()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    startup.set_environment()
    assert Path(os.environ["JAX_COMPILATION_CACHE_DIR"]).parent == tmp_path / "vaejax"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")


def test_tensorflow_comes_without_keras():
    code = "import sys; from vaejax import startup; startup.set_environment(); import tensorflow; "
    assert _python(code + "print('keras' in sys.modules)") == "False\n"
    assert _python(code + "print('keras' in sys.modules)", TF_USE_LEGACY_KERAS="0") == "True\n"
