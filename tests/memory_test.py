"""How much memory is left: of the machine, or of the container, whichever is less."""

import pytest

from vaejax import evaluation, memory


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine that says it has 8 GiB left, and no container."""
    (tmp_path / "meminfo").write_text("MemTotal:       16777216 kB\nMemAvailable:    8388608 kB\n")
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CONTAINER", tmp_path / "cgroup")
    return tmp_path / "cgroup"


def contain(folder, limit, used, names, cache=0):
    for name, value in zip(names[:3], (limit, used, f"anon 5\n{names[3]} {cache}"), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{value}\n")


def test_a_machine_has_what_it_says(machine):
    assert memory.available() == 2**33


@pytest.mark.parametrize("names", memory.LIMITS)
def test_a_container_has_what_it_may_take(machine, names):
    contain(machine, 2**31, 2**30, names)
    assert memory.available() == 2**30
    contain(machine, 2**31, 2**31, names, cache=2**29)  # files that were read can be dropped
    assert memory.available() == 2**29
    contain(machine, 2**30, 2**31, names)
    assert memory.available() == 0


@pytest.mark.parametrize(("names", "most"), [(memory.LIMITS[0], "max"), (memory.LIMITS[1], 2**63 - 4096)])
def test_a_container_without_a_limit_has_what_the_machine_has(machine, names, most):
    contain(machine, most, 2**20, names)
    assert memory.available() == 2**33


def test_where_nobody_says_nobody_knows(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "none")
    monkeypatch.setattr(memory, "CONTAINER", tmp_path / "none")
    assert memory.available() is None
    assert evaluation.pixels_at_a_time() == evaluation.PIXELS_AT_A_TIME["cpu"]


def test_fewer_pixels_are_decoded_at_a_time_where_memory_is_short(machine):
    names = memory.LIMITS[0]
    whole = evaluation.PIXELS_AT_A_TIME["cpu"]
    assert evaluation.pixels_at_a_time() == whole
    contain(machine, whole * evaluation.BYTES_A_PIXEL // 3, 0, names)
    assert evaluation.pixels_at_a_time() == whole // 4
    contain(machine, 1, 1, names)
    assert evaluation.pixels_at_a_time() == 1
