"""The journal tells each step once, whatever happened to the run; and a person who waits is told now and then."""

import contextlib
import io
import json

import pytest
from etils import epath

from vaejax import journal, progress
from vaejax.journal import Journal


@pytest.fixture
def directory(tmp_path) -> epath.Path:
    return epath.Path(tmp_path)


def _write(directory: epath.Path, first: int, last: int) -> None:
    with Journal(directory, first - 1) as notes:
        for step in range(first, last + 1):
            notes.write(step, "train", {"loss": float(step)})


def test_lines_come_back_as_written(directory):
    with Journal(directory, 0) as notes:
        notes.write(1, "train", {"loss": 2.5, "rate": 1.0})
        assert journal.read(directory) == [{"step": 1, "split": "train", "loss": 2.5, "rate": 1.0}]  # at once, not at the end
        notes.write(1, "val", {"loss": 3.0})
    assert journal.read(directory)[1] == {"step": 1, "split": "val", "loss": 3.0}


def test_no_journal_is_an_empty_one(directory):
    assert journal.read(directory) == []


def test_going_on_drops_the_steps_that_were_lost(directory):
    _write(directory, 1, 5)
    _write(directory, 4, 6)
    assert [row["step"] for row in journal.read(directory)] == [1, 2, 3, 4, 5, 6]
    with Journal(directory, 2):
        assert [row["step"] for row in journal.read(directory)] == [1, 2]


@pytest.mark.parametrize("cut", ["{", '{"step": 3, "split": "train", "loss": 1.', '{"step": 3, "split": "train", "loss": 1.0}'])
def test_a_last_line_that_was_cut_off_is_left_out(directory, cut):
    _write(directory, 1, 2)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(cut)
    assert [row["step"] for row in journal.read(directory)] == [1, 2]
    _write(directory, 3, 3)
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]


def test_tensorboard_gets_the_same(directory):
    _write(directory, 1, 2)
    (events,) = [file for file in (directory / "tensorboard").iterdir() if "tfevents" in file.name]
    assert b"train/loss" in events.read_bytes()


def test_an_error_does_not_lose_what_was_written(directory):
    with contextlib.suppress(ZeroDivisionError), Journal(directory, 0) as notes:
        notes.write(1, "train", {"loss": 2.5})
        _ = 1 / 0
    assert [row["step"] for row in journal.read(directory)] == [1]
    (events,) = (directory / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


# --- progress


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 10.5, 10.5, 11.0, 21.0, 21.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.bar("training", 30) as show:
        for count in range(1, 5):
            show(count, f"loss {count}")
    assert capsys.readouterr() == ("", "training 2/30 loss 2\ntraining 4/30 loss 4\n")


def test_a_terminal_gets_a_bar_from_where_the_work_stands(monkeypatch):
    console = progress.Console(force_terminal=True, width=120, record=True, file=io.StringIO())
    monkeypatch.setattr(progress, "console", console)
    with progress.bar("training", 30, done=10) as show:
        show(30, "loss 3")
    told = console.export_text()
    assert "training" in told
    assert "30/30" in told
    assert "loss 3" in told


def test_tracking_passes_every_item_on(capsys):
    assert list(progress.track(iter("abc"), "reading", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""
