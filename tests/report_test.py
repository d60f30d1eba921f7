"""Pictures lie where they should, and a report shows no path."""

import io
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from vaejax import report
from vaejax.config import from_dict
from vaejax.datasets import DataSet
from vaejax.runs import Run

GAP = 2


def _images(*shape: int) -> np.ndarray:
    """Values on the grid of 8 bits, all rows different."""
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.float32) / np.float32(255.0)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize(("height", "width"), [(64, 100), (28, 20), (7, 33)])
def test_every_tile_of_a_grid_lies_in_its_place(channels, mode, height, width):
    images = _images(2, 3, height, width, channels)
    picture = report.grid(images)
    assert picture.mode == mode
    pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    scale = max(64 // max(height, width), 1)
    tall, wide = height * scale, width * scale
    assert pixels.shape[:2] == (2 * tall + 3 * GAP, 3 * wide + 4 * GAP)
    for row in range(2):
        for column in range(3):
            y, x = GAP + row * (tall + GAP), GAP + column * (wide + GAP)
            tile = pixels[y : y + tall, x : x + wide].copy()
            enlarged = np.kron(np.round(images[row, column] * 255), np.ones((scale, scale, 1)))
            np.testing.assert_array_equal(tile, enlarged)
            pixels = pixels.copy()
            pixels[y : y + tall, x : x + wide] = 255
    assert (pixels == 255).all()  # nothing else than white lies between


def test_values_outside_of_the_range_are_clipped():
    images = np.array([-3.0, 0.0, 0.5, 1.0, 7.0], np.float32).reshape(1, 5, 1, 1, 1)
    tiles = np.asarray(report.grid(images))[GAP + 1, GAP + 1 :: 64 + GAP]
    assert tiles.tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize(("n", "rows", "columns"), [(1, 2, 1), (4, 2, 4), (10, 2, 10), (13, 2, 10), (20, 4, 10), (39, 6, 10)])
def test_pairs_lie_above_each_other(n, rows, columns):
    above = np.arange(n, dtype=np.float32).reshape(n, 1, 1, 1)
    drawn = report.pairs(above, above + 100.0)
    assert drawn.shape == (rows, columns, 1, 1, 1)
    for row in range(rows):
        first = row // 2 * columns + (100 if row % 2 else 0)
        assert drawn[row, :, 0, 0, 0].tolist() == list(range(first, first + columns))


def test_a_picture_is_saved_with_its_arrays(tmp_path):
    images = _images(1, 2, 64, 64, 1)
    report.save(epath.Path(tmp_path / "new" / "folder"), "samples", images, {"images": images[0], "index": np.arange(2)})
    picture = Image.open(io.BytesIO((tmp_path / "new" / "folder" / "samples.png").read_bytes()))
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(report.grid(images)))
    with np.load(tmp_path / "new" / "folder" / "samples.npz", allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["images", "index"]
        np.testing.assert_array_equal(arrays["images"], images[0])


def _run(source: str | None = None, **data: str) -> Run:
    config = from_dict({"data": data, "transfer": {"source": source}})
    return Run(epath.Path("anywhere"), config, DataSet({}, (1, 1, 1), 255.0, None, "", ()), model=None)


def test_the_shown_configuration_has_no_paths():
    places = ("path", "masks", "cache")
    folders = {name: f"/{name}/of/doe_jane" for name in (*places, "source")}
    shown = report._public_config(_run(name="image_folder", **folders))
    assert "doe_jane" not in shown
    values = json.loads(shown)
    assert {*(values["data"][name] for name in places), values["transfer"]["source"]} == {"(in config.json)"}
    assert values["data"]["name"] == "image_folder"
    assert values["seed"] == 0


def test_the_shown_configuration_says_where_there_is_no_path():
    values = json.loads(report._public_config(_run(name="mnist5k")))
    assert values["data"]["path"] is None
    assert values["data"]["cache"] is None
