"""What a run makes of files lies where they lay, says whose it is by id alone, and is what the library makes of the images."""

import csv
import functools
import json
import stat
from pathlib import Path
from typing import Any

import jax
import nibabel
import numpy as np
import pydicom
import pytest
from etils import epath
from PIL import Image
from pyarrow import parquet
from volumes_test import save_dicom, save_nifti

from vaejax import calibration, checkpoints, cli, derived, experiment, keys, runs, screening, studies, training
from vaejax.applications import anomaly, embedding, inpainting, reconstruction, segmentation
from vaejax.config import from_dict
from vaejax.errors import DataError
from vaejax.runs import Run
from vaejax.screening import Normal

pytestmark = pytest.mark.usefixtures("compiled_quickly")

AFFINE = np.array([[0, 0, -3.0, 5], [2.0, 0, 0, -7], [0, -1.5, 0, 9], [0, 0, 0, 1]])
"""Of axes that are turned and mirrored."""

MOVED = AFFINE + 9.0 * np.outer([1, 0, 0, 0], [0, 0, 0, 1])

MLP = {"network": "mlp", "hidden": (8,), "latent_size": 2, "likelihood": "gaussian"}


def create(folder: Path, data: dict[str, Any], name: str = "run", **sections: dict[str, Any]) -> Run:
    """A run with stirred initial weights."""
    values = {"data": data | {"batch_size": 4}, "model": MLP, "evaluation": {"batch_size": 3}} | sections
    run = runs.create(str(folder / name), from_dict(values))

    def stirred(params: Any) -> Any:
        random = np.random.default_rng(1)
        return jax.tree.map(lambda leaf: leaf + np.float32(0.3 * random.normal(size=leaf.shape)), params)

    state = training.init(run.model, training.objective_of(run.model, run.config), jax.random.key(0), stirred)
    with checkpoints.Writer(run.checkpoints, run.fingerprint) as writer:
        writer.save(1, state, {"loss": 1.0})
    return run


def scan(seed: int, shape: tuple[int, ...] = (12, 14, 4)) -> np.ndarray:
    return np.float32(np.random.default_rng(seed).uniform(100, 200, shape))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Of eight patients, two of them set apart for calibration."""
    folder = tmp_path_factory.mktemp("volumes")
    for number in range(8):
        save_nifti(folder / "in" / f"{number}.nii", scan(number))
    data = {"name": "volumes", "path": str(folder / "in"), "image_size": (14, 12), "window": (150, 100)}
    data |= {"calibration_fraction": 0.4, "slice_range": (0.2, 0.8)}
    return create(folder, data, anomaly={"score": "error", "samples": 2, "steps": 2, "alpha": 0.4})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Labelled by their brightness."""
    folder, random, arrays = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), {}
    for split, n in (("train", 40), ("val", 12), ("test", 12)):
        label = np.arange(n) % 2
        images = random.integers(0, 128, (n, 8, 8)) + 100 * label[:, None, None]
        arrays |= {f"{split}_images": np.uint8(images), f"{split}_labels": label}
    np.savez(folder / "images.npz", **arrays)
    return create(folder, {"name": "medmnist", "path": str(folder / "images.npz")})


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A NIfTI file and a DICOM series of the patient."""
    voxels = scan(90, (14, 4, 12))
    voxels[0, 0, 0] = 500  # beyond the window
    save_nifti(tmp_path / "in" / "JaneRoe.nii.gz", voxels, AFFINE)
    for number in range(3):
        save_dicom(tmp_path / "in" / "series" / f"{number}", np.int16(scan(91 + number, (14, 12))), 2.0 * number)
    return tmp_path / "in"


def ids(output: Path) -> dict[str, str]:
    """The id of each study by the first of its paths; the list is its owner's alone, and nothing else names them."""
    index = output / "studies.json"
    assert stat.S_IMODE(index.stat().st_mode) == 0o600
    for path in output.rglob("*"):
        assert "Jane" not in path.name
        assert path == index or path.is_dir() or b"Jane" not in path.read_bytes()
    return {paths[0]: name for name, paths in json.loads(index.read_text()).items()}


def nifti(path: Path) -> np.ndarray:
    image = nibabel.load(path)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    return np.asarray(image.dataobj)


def study_of(run: Run, path: Path) -> studies.Study:
    (study,) = studies.read(path, run.config.data, run.data)
    return study


def weights(run: Run) -> Any:
    return experiment.restore(run).params


# --- anomalies


def test_a_score_that_is_no_number_is_no_verdict(volumes, scans, tmp_path, monkeypatch):
    def scored(run, look, normal, study, index):
        return {name: np.where(index == 1, np.nan, 0.5) for name in screening.SCORES}

    monkeypatch.setattr(derived, "_scored", scored)
    with pytest.raises(DataError, match=r"expected a number for every image of study [0-9a-f]+, found none for index 1"):
        derived.anomaly(volumes, epath.Path(tmp_path / "out"), False, str(scans / "JaneRoe.nii.gz"), None, False)


def test_maps_lie_on_their_scans_and_p_values_come_from_the_calibration(volumes, scans, tmp_path, capsys):
    output = tmp_path / "out"
    assert cli.main(["anomaly", str(volumes.directory), f"--input={scans}", f"--output={output}"]) == 0
    said, found = capsys.readouterr().out, json.loads((output / "anomaly.json").read_text())
    name = ids(output)["JaneRoe.nii.gz"]
    study, normal = study_of(volumes, scans / "JaneRoe.nii.gz"), screening.of_normal(volumes, weights(volumes))
    assert (found["by"], found["calibration"]["n"], study.wanted.tolist()) == ("patient", 2, [False, True, True, False])
    key = keys.of_examples(jax.random.key(0), np.arange(4))
    scores = anomaly.score(volumes.model, weights(volumes), study.images, key, "error", volumes.config.anomaly)
    strangest = np.asarray(scores.value)[study.wanted].max()
    chance = float(calibration.p_values(normal.scores, np.array([strangest]))[0])
    assert found["studies"][name] == {"images": 4, "counted": 2, "p_value": chance, "flagged": chance <= 0.4}
    assert f"{name}: p = {chance:.3g}" in said
    assert "Research use only" in said
    map_ = study.back(np.asarray(anomaly.relative(scores.map, normal.map)))
    np.testing.assert_allclose(nifti(output / f"{name}_anomaly.nii.gz"), map_, rtol=1e-3)
    marked = nifti(output / f"{name}_anomalous.nii.gz")
    assert marked.dtype == np.uint8
    assert 0 < marked.mean() < 0.2
    np.testing.assert_array_equal(marked > 0, map_ > normal.pixel_threshold)
    assert len(list((output / f"{ids(output)['series/0']}_anomaly").iterdir())) == 3
    with (output / "anomaly.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["id"] == name]
    assert [(row["slice"], row["counted"]) for row in rows] == [("0", "0"), ("1", "1"), ("2", "1"), ("3", "0")]
    np.testing.assert_allclose([float(row["error"]) for row in rows], scores.value, rtol=1e-4)
    assert {*screening.SCORES} - {*screening.undefined(volumes)} <= set(rows[0])


def normal(by: str, n: int = 99, alpha: float = 0.05) -> Normal:
    scores = np.arange(1.0, n + 1)
    return Normal(scores, by, alpha, calibration.threshold(scores, alpha), 1.0, np.ones((1, 1)))


def test_slices_that_are_calibrated_one_by_one_are_corrected_for_their_number():
    scores = np.array([200.0, 98.5, 50.0, 3.0])  # the first is not counted
    numbers = {"error": scores, "wanted": np.array([False, True, True, True])}
    verdict = functools.partial(derived._verdict, numbers, score="error")
    assert verdict(normal("patient")) == {"images": 4, "counted": 3, "p_value": 0.02, "flagged": True}
    assert verdict(normal("image")) == {"images": 4, "counted": 3, "p_value": pytest.approx(0.06), "flagged": False}
    nothing = numbers | {"wanted": np.zeros(4, bool)}
    assert derived._verdict(nothing, normal("image"), "error")["flagged"] is None


def test_a_normal_study_of_slices_calibrated_one_by_one_is_flagged_no_more_often_than_promised():
    random, flagged = np.random.default_rng(0), 0
    for _ in range(1_000):
        scores = random.normal(size=99)
        usual = Normal(scores, "image", 0.1, calibration.threshold(scores, 0.1), 1.0, np.ones((1, 1)))
        flagged += derived._verdict({"error": random.normal(size=5), "wanted": np.ones(5, bool)}, usual, "error")["flagged"]
    assert 40 <= flagged <= 120  # 100 promised; Bonferroni is a little below


# --- missing pixels


@pytest.fixture
def few_transitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inpainting, "inpaint", functools.partial(inpainting.inpaint, burn_in=3, kept=2))


def test_pixels_that_are_not_missing_come_back_as_they_were(volumes, scans, tmp_path, few_transitions, capsys):
    mask, output = np.zeros((14, 4, 12), np.int16), tmp_path / "out"
    mask[3:7, 1, 2:6] = 7
    save_nifti(tmp_path / "mask.nii", mask, AFFINE)
    command = ["inpaint", str(volumes.directory), f"--input={scans / 'JaneRoe.nii.gz'}", f"--output={output}", "--draws=2"]
    assert cli.main([*command, f"--mask={tmp_path / 'mask.nii'}"]) == 0
    assert "chains: " in capsys.readouterr().out
    (name,) = ids(output).values()
    source = nifti(scans / "JaneRoe.nii.gz")
    completed = {part: nifti(output / f"{name}_{part}.nii.gz") for part in ("inpainted", "draw1", "draw2")}
    for values in completed.values():
        np.testing.assert_array_equal(values[mask == 0], source[mask == 0])
        assert (values[mask != 0] != source[mask != 0]).all()
        assert 100 <= values[mask != 0].min() <= values[mask != 0].max() <= 200  # in the units of the scan
    assert (completed["draw1"][mask != 0] != completed["draw2"][mask != 0]).all()
    sd = nifti(output / f"{name}_sd.nii.gz")
    assert not sd[mask == 0].any()
    assert (sd[mask != 0] > 0).all()


def test_a_mask_that_does_not_lie_on_the_scan_is_refused(volumes, scans, tmp_path, capsys):
    command = ["inpaint", str(volumes.directory), f"--input={scans / 'JaneRoe.nii.gz'}", f"--output={tmp_path / 'out'}"]
    for voxels, affine, told in (
        (np.eye(14)[..., None], AFFINE, "as its image has"),
        (np.ones((14, 4, 12)) * (np.arange(12) > 1), MOVED, "lies elsewhere"),
        (np.zeros((14, 4, 12)), AFFINE, "found 0%"),
    ):
        save_nifti(tmp_path / "mask.nii", voxels, affine)
        assert cli.main([*command, f"--mask={tmp_path / 'mask.nii'}"]) == 1
        assert told in capsys.readouterr().err


def test_what_lies_under_a_mask_finer_than_the_model_is_never_seen(pictures, tmp_path, few_transitions):
    source = np.uint8(np.random.default_rng(3).integers(0, 255, (32, 32)))
    mask = np.zeros((32, 32), bool)
    mask[9:12, 13:20] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    completed = []
    for name, pixels in (("one", source), ("other", np.where(mask, 255 - source, source))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        command = ["inpaint", str(pictures.directory), f"--input={tmp_path / name}.png", f"--output={tmp_path / name}"]
        assert cli.main([*command, f"--mask={tmp_path / 'mask.png'}", "--draws=2"]) == 0
        (study,) = ids(tmp_path / name).values()
        files = {part: Image.open(tmp_path / name / f"{study}_{part}.png") for part in ("inpainted", "draw1", "draw2", "sd")}
        completed.append({part: np.asarray(file)[:32, :32] for part, file in files.items()})
    for part, values in completed[0].items():
        np.testing.assert_array_equal(values, completed[1][part])
        np.testing.assert_array_equal(values[~mask], 0 if part == "sd" else source[~mask])
    assert (completed[0]["inpainted"][mask] != source[mask]).mean() > 0.8
    assert completed[0]["sd"][mask].all()


def test_what_is_missing_in_a_slice_is_not_seen_by_its_neighbours(volumes, scans, tmp_path, few_transitions):
    data = {"name": "volumes", "path": volumes.config.data.path, "image_size": (14, 12), "window": (150, 100), "block": 3}
    run, mask, completed = create(tmp_path, data), np.zeros((14, 4, 12), np.int16), []
    mask[3:5, 1, 2:6] = mask[8:10, 2, 2:6] = 1
    save_nifti(tmp_path / "mask.nii", mask, AFFINE)
    source = nifti(scans / "JaneRoe.nii.gz")
    for name, voxels in (("one", source), ("other", np.where(mask == 1, 300 - source, source))):
        save_nifti(tmp_path / f"{name}.nii", voxels, AFFINE)
        command = ["inpaint", str(run.directory), f"--input={tmp_path / name}.nii", f"--output={tmp_path / name}"]
        assert cli.main([*command, f"--mask={tmp_path / 'mask.nii'}", "--draws=2"]) == 0
        (study,) = ids(tmp_path / name).values()
        completed.append(nifti(tmp_path / name / f"{study}_draw1.nii.gz"))
    np.testing.assert_array_equal(*completed)
    np.testing.assert_array_equal(completed[0][mask == 0], source[mask == 0])
    assert (completed[0][mask == 1] != source[mask == 1]).all()


def test_a_folder_is_the_mask_of_a_series_whatever_its_name(volumes, scans, tmp_path, few_transitions):
    mask = np.zeros((3, 14, 12), np.int16)
    mask[1, 3:7, 2:6] = 1
    for number in range(3):
        save_dicom(tmp_path / "drawn" / f"{number}", mask[number], 2.0 * number)
    output = tmp_path / "out"
    command = ["inpaint", str(volumes.directory), f"--input={scans / 'series'}", f"--output={output}", "--draws=2"]
    assert cli.main([*command, f"--mask={tmp_path / 'drawn'}"]) == 0
    (study,) = ids(output).values()
    files = [pydicom.dcmread(file) for file in sorted((output / f"{study}_sd").iterdir())]
    sd = np.stack([file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept) for file in files])
    np.testing.assert_array_equal(sd > 1e-6, mask == 1)


def test_a_region_is_missing_in_every_picture(pictures, tmp_path, few_transitions):
    source, output = np.uint8(np.random.default_rng(3).integers(0, 255, (8, 8))), tmp_path / "out"
    Image.fromarray(source).save(tmp_path / "Jane.png")
    run, path = str(pictures.directory), f"--input={tmp_path / 'Jane.png'}"
    assert cli.main(["inpaint", run, path, f"--output={output}", "--mask=square:4", "--draws=2"]) == 0
    with Image.open(output / f"{ids(output)['Jane.png']}_inpainted.png") as image:
        completed = np.asarray(image)[:8, :8]
    missing = inpainting.region("square:4", (8, 8))
    np.testing.assert_array_equal(completed[~missing], source[~missing])
    assert (completed[missing] != source[missing]).mean() > 0.5


# --- images


def test_at_temperature_zero_what_is_near_a_scan_is_its_reconstruction(volumes, scans, tmp_path):
    output, run = tmp_path / "out", str(volumes.directory)
    for temperature in (0, 2):
        folder = f"--output={output / str(temperature)}"
        assert cli.main(["sample", run, f"--near={scans}", "--n=3", f"--temperature={temperature}", folder]) == 0
    assert cli.main(["reconstruct", run, f"--input={scans}", f"--output={output / 'back'}"]) == 0
    name = ids(output / "0")["JaneRoe.nii.gz"]
    still, moved = ([nifti(output / t / f"{name}_sample{i}.nii.gz") for i in (1, 2, 3)] for t in ("0", "2"))
    back = nifti(output / "back" / f"{name}_reconstruction.nii.gz")
    for one in still:
        np.testing.assert_allclose(one, back, atol=1e-3)
    assert all(np.abs(one - back).max() > 0.1 for one in moved)
    assert len({one.tobytes() for one in moved}) == 3
    with np.load(output / "2" / "samples.npz") as arrays:
        assert arrays["images"].shape == (2, 3, 14, 12, 1)
        place = arrays["id"].tolist().index(name)
        study = study_of(volumes, scans / "JaneRoe.nii.gz")
        expected = study.units(study.back(np.repeat(arrays["images"][place, 1][np.newaxis], 4, axis=0)))
    middle = study.back(np.broadcast_to(np.arange(4, dtype=np.float32)[:, None, None], (4, 14, 12))) == 2
    np.testing.assert_allclose(moved[1][middle], expected[middle], atol=1e-3)
    assert (output / "2" / "samples.png").exists()


def test_near_an_image_a_conditional_run_needs_its_label_and_another_has_none(pictures, tmp_path, capsys):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    assert cli.main(["sample", str(pictures.directory), f"--near={tmp_path / 'a.png'}", "--label=1"]) == 1
    assert "the run is not conditional" in capsys.readouterr().err
    assert cli.main(["sample", str(pictures.directory), f"--near={tmp_path / 'a.png'}", "--format=dicom"]) == 1
    assert "Leave out --sampler and --format" in capsys.readouterr().err
    data = {"name": "medmnist", "path": pictures.config.data.path}
    told = create(tmp_path, data, model=MLP | {"conditional": True})
    command = ["sample", str(told.directory), f"--near={tmp_path / 'a.png'}", "--temperature=0", f"--output={tmp_path / 'out'}"]
    assert cli.main(command) == 1
    assert "add --label" in capsys.readouterr().err
    assert cli.main([*command, "--label=1", "--n=2"]) == 0
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        expected = reconstruction.reconstruct(told.model, weights(told), np.zeros((1, 8, 8, 1), np.float32), np.array([1]))
        np.testing.assert_allclose(arrays["images"][0, 0], expected[0], atol=1e-4)


def test_samples_are_written_for_viewers_of_medical_images(pictures, tmp_path):
    for form in ("nifti", "dicom"):
        assert cli.main(["sample", str(pictures.directory), "--n=3", f"--format={form}", f"--output={tmp_path}"]) == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        images = arrays["images"][..., 0]
    volume = nibabel.load(tmp_path / "samples.nii.gz")
    assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
    save_nifti(tmp_path / "again" / "a.nii", np.asarray(volume.dataobj), volume.affine)
    values = {"name": "volumes", "path": str(tmp_path / "again"), "window": (0, 2)}
    (study,) = studies.read(tmp_path / "again", from_dict({"data": values}).data, pictures.data)
    np.testing.assert_allclose(study.images[..., 0], (images + 1) / 2, atol=1e-6)
    files = [pydicom.dcmread(file) for file in sorted((tmp_path / "samples").iterdir())]
    for file, image in zip(files, images, strict=True):
        np.testing.assert_allclose(file.pixel_array * float(file.RescaleSlope) + float(file.RescaleIntercept), image, atol=1e-4)
        assert (file.SOPClassUID, str(file.PatientName or "")) == (pydicom.uid.SecondaryCaptureImageStorage, "")
        assert "not for diagnosis" in file.SeriesDescription
    assert len({file.SOPInstanceUID for file in files}) == 3
    assert len({file.SeriesInstanceUID for file in files}) == 1


def test_a_line_goes_from_one_given_image_to_another(pictures, tmp_path, capsys):
    random = np.random.default_rng(4)
    for name in ("a", "b"):
        Image.fromarray(np.uint8(random.integers(0, 255, (8, 8)))).save(tmp_path / f"{name}.png")
    ends, output = [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out"
    command = ["interpolate", str(pictures.directory), "--steps=3", f"--output={output}", "--input"]
    assert cli.main([*command, *map(str, ends)]) == 0
    with np.load(output / "interpolations.npz") as arrays:
        lines, names = arrays["images"], arrays["id"]
    for place, (path, name) in enumerate(zip(ends, names[0], strict=True)):
        study = study_of(pictures, path)
        assert ids(output)[path.name] == name == study.id
        expected = reconstruction.reconstruct(pictures.model, weights(pictures), study.images)
        np.testing.assert_allclose(lines[:, 2 * place], expected, atol=1e-4)
    assert cli.main([*command, str(ends[0]), str(tmp_path)]) == 1
    assert "expected one image or volume, found several" in capsys.readouterr().err


def test_what_changes_in_a_file_is_written_beside_it(pictures, tmp_path, capsys):
    Image.fromarray(np.uint8(np.random.default_rng(5).integers(0, 128, (8, 8)))).save(tmp_path / "in.png")
    output = tmp_path / "out"
    command = ["explain", str(pictures.directory), "--from=0", "--to=1", f"--input={tmp_path / 'in.png'}", "--steps=3"]
    assert cli.main([*command, f"--output={output}"]) == 0
    assert "mean probability of 1" in capsys.readouterr().out
    (name,) = ids(output).values()
    with np.load(output / "explanation.npz") as arrays:
        assert arrays["id"].tolist() == [name]
        walk, change = arrays["walk"][0], arrays["differences"][0, -1, ..., 0]
    with Image.open(output / f"{name}_explained.png") as image:
        np.testing.assert_allclose(np.asarray(image)[:8, :8] / 255, walk[-1, ..., 0], atol=0.003)
    with Image.open(output / f"{name}_change.png") as image:
        low = min(change.min(), 0.0)
        np.testing.assert_allclose(np.asarray(image)[:8, :8] / 65535 * (1 - low) + low, change, atol=1e-3)


# --- masks and tables


def test_masks_come_back_in_the_geometry_of_the_scans(scans, tmp_path):
    for number in range(4):
        save_nifti(tmp_path / "images" / f"{number}.nii", scan(number))
        save_nifti(tmp_path / "masks" / f"{number}.nii", np.uint8(scan(number) > 150))
    data = {"name": "volumes", "path": str(tmp_path / "images"), "masks": str(tmp_path / "masks"), "image_size": (14, 12)}
    model = {"network": "cnn", "features": (4,), "hidden": (4,), "latent_size": 2, "regions": 3}
    run, output = create(tmp_path, data, model=model, objective={"name": "segmentation"}), tmp_path / "out"
    assert cli.main(["segment", str(run.directory), f"--input={scans}", f"--output={output}"]) == 0
    study = study_of(run, scans / "JaneRoe.nii.gz")
    expected = study.back(np.asarray(segmentation.segment(run.model, weights(run), study.images)))
    written = nifti(output / f"{ids(output)['JaneRoe.nii.gz']}_segmentation.nii.gz")
    assert len(np.unique(expected)) > 1
    assert written.dtype == np.uint8
    np.testing.assert_array_equal(written, expected)
    assert len(list((output / f"{ids(output)['series/0']}_segmentation").iterdir())) == 3
    assert (output / "segmentations.png").exists()


def test_the_table_of_files_has_a_row_a_slice(volumes, scans, tmp_path, capsys):
    output = tmp_path / "out"
    assert cli.main(["embed", str(volumes.directory), f"--input={scans}", f"--output={output}"]) == 0
    assert "7 images of 2 studies, 2 numbers each" in capsys.readouterr().out
    table, name = parquet.read_table(output / "latents.parquet").to_pydict(), ids(output)["JaneRoe.nii.gz"]
    assert list(table) == ["id", "slice", "z0", "z1"]
    rows = [row for row, one in enumerate(table["id"]) if one == name]
    assert [table["slice"][row] for row in rows] == [0, 1, 2, 3]
    study = study_of(volumes, scans / "JaneRoe.nii.gz")
    expected = embedding.embed(volumes.model, weights(volumes), study.images)
    np.testing.assert_allclose([[table[z][row] for z in ("z0", "z1")] for row in rows], expected, atol=1e-4)


def test_a_conditional_run_is_not_told_the_labels_of_files(pictures, tmp_path, capsys):
    told = create(tmp_path, {"name": "medmnist", "path": pictures.config.data.path}, model=MLP | {"conditional": True})
    for verb in ("reconstruct", "inpaint", "embed", "anomaly"):
        assert cli.main([verb, str(told.directory), f"--input={tmp_path}", f"--output={tmp_path / 'out'}"]) == 1
        assert "the run is conditional, and nobody knows the labels" in capsys.readouterr().err
