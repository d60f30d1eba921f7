"""NIfTI files give nibabel's voxels and geometry; what is written back lies where its source lay."""

import gzip
import json
import os
import random
import re
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from vaejax.datasets.nifti import Volume, canonical, decode, encode, save, turned
from vaejax.errors import DataError

RNG = np.random.default_rng(0)
ORIENTATIONS = ["RAS", "LPS", "LAS", "SAR", "PIL", "IRP", "ASL", "SPR"]


def _affine(codes: str = "RAS", spacing: tuple[float, ...] = (1.0, 1.5, 2.5), angle: float = 0.2) -> np.ndarray:
    """An oblique affine whose axes run nearest to `codes`."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = 11.5, -7.25, 30
    axes = np.diag([0.0, 0, 0, 1])
    for i, (axis, sign) in enumerate(nib.orientations.axcodes2ornt(codes)):
        axes[int(axis), i] = sign
    return turn @ axes @ np.diag([*spacing, 1])


def _save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None, kind: type = nib.Nifti1Image, **header) -> Path:
    image = kind(voxels, _affine() if affine is None else affine, dtype=voxels.dtype)
    for field, value in header.items():
        image.header[field] = value
    nib.save(image, path)
    return path


def _patched(path: Path, **fields) -> Path:
    """The same file with other values in its header."""
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(header.binaryblock + content[348:])
    return path


def _voxels(*shape: int, dtype: str = "i2", low: int = 0, high: int = 100) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(dtype)


# --- voxels


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "i4", "u4", "f4", "f8", ">i2", ">f4"])
def test_voxels_are_those_of_nibabel(tmp_path, kind, suffix, dtype):
    voxels = _voxels(5, 6, 7, dtype=dtype)
    image = kind(
        voxels, _affine(), kind.header_class(endianness=np.dtype(dtype).byteorder if ">" in dtype else "<"), dtype=dtype
    )
    nib.save(image, tmp_path / f"a{suffix}")
    volume = decode(tmp_path / f"a{suffix}")
    assert volume.voxels.dtype == (np.float32 if "f" in dtype else np.dtype(dtype).newbyteorder("="))
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, _affine(), atol=1e-5)
    np.testing.assert_allclose(volume.spacing, (1, 1.5, 2.5), rtol=1e-6)


def test_the_content_and_not_the_name_says_what_is_compressed(tmp_path):
    path = _save(tmp_path / "a.nii", _voxels(3, 4, 5))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert decode(path).voxels.shape == (3, 4, 5)


def test_slope_and_intercept_are_applied_and_float32(tmp_path):
    voxels = _voxels(110, 100, 101)  # more than one chunk
    path = _patched(_save(tmp_path / "a.nii", voxels), scl_slope=0.5, scl_inter=-3)
    assert decode(path).voxels.dtype == np.float32
    np.testing.assert_array_equal(decode(path).voxels, voxels * 0.5 - 3)
    np.testing.assert_array_equal(decode(path).voxels, nib.load(path).get_fdata(dtype=np.float32))


@pytest.mark.parametrize(("slope", "intercept"), [(0, 7), (np.nan, 7), (1, 0)])
def test_a_trivial_scaling_keeps_the_type(tmp_path, slope, intercept):
    voxels = _voxels(3, 4, 5)
    found = decode(_patched(_save(tmp_path / "a.nii", voxels), scl_slope=slope, scl_inter=intercept)).voxels
    assert found.dtype == voxels.dtype
    np.testing.assert_array_equal(found, voxels)


def test_nan_and_infinities_stay(tmp_path):
    voxels = np.array([np.nan, np.inf, -np.inf, 1], "f4").reshape(2, 2, 1)
    np.testing.assert_array_equal(decode(_save(tmp_path / "a.nii", voxels)).voxels, voxels)


@pytest.mark.parametrize("channels", [3, 4])
def test_colour_is_a_last_axis(tmp_path, channels):
    colours = _voxels(3, 4, 5, channels, dtype="u1")
    packed = colours.view([(name, "u1") for name in "RGBA"[:channels]])[..., 0]
    volume = decode(_save(tmp_path / "a.nii", packed))
    assert volume.colour
    np.testing.assert_array_equal(volume.voxels, colours)
    save(tmp_path / "b.nii", volume.voxels, volume.affine, volume)
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "b.nii").dataobj), packed)


def test_two_and_four_axes(tmp_path):
    assert decode(_save(tmp_path / "a.nii", _voxels(3, 4))).voxels.shape == (3, 4, 1)
    path = _save(tmp_path / "b.nii", _voxels(3, 4, 5, 6), pixdim=[1, 1, 1.5, 2.5, 0.72, 1, 1, 1])
    assert decode(path).voxels.shape == (3, 4, 5, 6)
    assert decode(path).steps == pytest.approx((0.72,))


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_lengths_are_in_mm_whatever_the_unit(tmp_path, unit, factor):
    volume = decode(_patched(_save(tmp_path / "a.nii", _voxels(3, 4, 5)), xyzt_units=unit + 8))
    np.testing.assert_allclose(volume.spacing, np.array([1, 1.5, 2.5]) * factor, rtol=1e-6)


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_the_affine_is_the_one_that_nibabel_chooses(tmp_path, sform, qform):
    image = nib.Nifti1Image(_voxels(3, 4, 5), _affine())
    image.set_sform(_affine("LAS"), sform)
    image.set_qform(_affine("LPS"), qform)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_allclose(decode(tmp_path / "a.nii").affine, nib.load(tmp_path / "a.nii").affine, atol=1e-12)


# --- orientation and the way back


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("shape", [(5, 6, 7), (5, 6, 7, 2)])
def test_canonical_is_nibabel_s_and_turns_back(tmp_path, codes, shape):
    path = _save(tmp_path / "a.nii", _voxels(*shape, dtype="f4"), _affine(codes))
    volume, expected = decode(path), nib.as_closest_canonical(nib.load(path))
    assert "".join(nib.aff2axcodes(volume.affine)) == codes
    upright = canonical(volume)
    np.testing.assert_array_equal(upright.voxels, expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(upright.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(upright.spacing, expected.header.get_zooms()[:3], rtol=1e-5)
    back = turned(upright, volume.affine)
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)
    assert back.spacing == pytest.approx(volume.spacing)


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_result_is_written_where_its_source_lies(tmp_path, codes, suffix):
    source = decode(_save(tmp_path / "a.nii", _voxels(5, 6, 7), _affine(codes)))
    upright = canonical(source)
    result = turned(upright._replace(voxels=upright.voxels > 50), source.affine)
    save(tmp_path / f"b{suffix}", result.voxels, source.affine, source)
    written = nib.load(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(np.asarray(written.dataobj), source.voxels > 50)
    assert written.get_data_dtype() == np.uint8
    for affine in (written.affine, written.get_sform(), written.get_qform()):
        np.testing.assert_allclose(affine, source.affine, atol=1e-5)


def test_a_sheared_affine_is_kept_and_has_no_qform(tmp_path):
    affine = _affine()
    affine[0, 1] += 0.7
    save(tmp_path / "a.nii", _voxels(3, 4, 5), affine)
    written = nib.load(tmp_path / "a.nii")
    assert written.get_qform(coded=True)[1] == 0
    np.testing.assert_allclose(written.affine, affine, atol=1e-5)
    np.testing.assert_allclose(decode(tmp_path / "a.nii").affine, affine, atol=1e-5)


def test_nothing_but_the_geometry_of_a_source_is_written(tmp_path):
    fields = {"descrip": b"Jane Doe", "aux_file": b"doe.nii", "db_name": b"Doe", "intent_name": b"Doe"}
    image = nib.Nifti1Image(_voxels(3, 4, 5, 2), _affine())
    for field, value in fields.items():
        image.header[field] = value
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"born Doe"))
    image.header.set_zooms((1, 1.5, 2.5, 3))
    image.set_sform(_affine(), 4)
    nib.save(image, tmp_path / "doe.nii.gz")
    source = decode(tmp_path / "doe.nii.gz")
    save(tmp_path / "b.nii.gz", source.voxels, source.affine, source)
    assert b"oe" not in gzip.decompress((tmp_path / "b.nii.gz").read_bytes())[:400]
    assert b"oe" not in (tmp_path / "b.nii.gz").read_bytes()[:20]  # gzip keeps names of files
    again = decode(tmp_path / "b.nii.gz")
    assert (again.space, again.steps) == (4, (3,))


def test_the_same_voxels_give_the_same_bytes_and_long_axes_nifti_2(tmp_path):
    voxels = _voxels(3, 4, 5)
    save(tmp_path / "a.nii.gz", voxels, _affine())
    save(tmp_path / "b.nii.gz", voxels, _affine())
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert (tmp_path / "a.nii.gz").read_bytes()[4:8] == bytes(4)  # gzip's time
    long = _voxels(40000, 1, 1)
    (tmp_path / "c.nii").write_bytes(encode(long, _affine()))
    assert isinstance(nib.load(tmp_path / "c.nii"), nib.Nifti2Image)
    np.testing.assert_array_equal(decode(tmp_path / "c.nii").voxels, long)


def test_what_the_format_cannot_hold_is_refused():
    for affine in (np.zeros((4, 4)), np.full((4, 4), np.nan), np.eye(3)):
        with pytest.raises(DataError, match="affine"):
            encode(_voxels(3, 4, 5), affine)
    with pytest.raises(DataError):
        encode(np.zeros((2, 2, 2), np.complex128).astype(object), np.eye(4))


# --- broken and hostile files


def test_a_bomb_is_stopped_before_it_grows(tmp_path):
    path = _patched(_save(tmp_path / "a.nii", np.zeros((2, 2, 2), "u1")), dim=[3, 1000, 1000, 1000, 1, 1, 1, 1])
    bomb = gzip.compress(path.read_bytes()[:352] + bytes(100 * 2**20))
    path.write_bytes(bomb)
    assert len(bomb) < 2**18
    tracemalloc.start()
    with pytest.raises(DataError, match="1000000000 voxels of 1 bytes claimed; at most 536870912"):
        decode(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    with pytest.raises(DataError, match="at most 1048576"):
        decode(path, max_bytes=2**20)
    longer = _save(tmp_path / "b.nii", np.zeros((2, 2, 2), "u1")).read_bytes() + bytes(100 * 2**20)
    path.write_bytes(gzip.compress(longer))
    del longer
    tracemalloc.clear_traces()
    assert decode(path, max_bytes=2**20).voxels.shape == (2, 2, 2)  # what follows the voxels is never inflated
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_header_of_a_kilobyte_allocates_nothing(tmp_path, suffix):
    path = _patched(_save(tmp_path / "a.nii", np.zeros((2, 2, 2), "u1")), dim=[4, 800, 800, 800, 1, 1, 1, 1])
    if suffix == ".nii.gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    tracemalloc.start()
    with pytest.raises(DataError, match="512000000 bytes of voxels claimed, more than the file can hold"):
        decode(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"dim": [3, 0, 2, 2, 1, 1, 1, 1]}, "axes of no possible length"),
        ({"dim": [3, -2, 2, 2, 1, 1, 1, 1]}, "axes of no possible length"),
        ({"dim": [9, 2, 2, 2, 1, 1, 1, 1]}, "no possible"),
        ({"vox_offset": np.nan}, "no possible place"),
        ({"vox_offset": 100}, "no possible place"),
        ({"vox_offset": -1e30}, "no possible place"),
        ({"vox_offset": 1e30}, "no possible place"),
        ({"datatype": 1}, "not supported|not known"),
        ({"datatype": 32}, "complex64, which is not supported"),
        ({"datatype": 999}, "not known"),
        ({"scl_slope": 2, "scl_inter": np.inf}, "intercept"),
        ({"srow_x": np.zeros(4)}, "cannot be inverted"),
        ({"magic": b"ni1"}, "header of a pair"),
        ({"magic": b"abc"}, "not a NIfTI file"),
    ],
)
def test_contradictions_are_said(tmp_path, fields, reason):
    with pytest.raises(DataError, match=reason):
        decode(_patched(_save(tmp_path / "a.nii", _voxels(2, 2, 2)), **fields))


def test_large_files_and_things_that_are_no_files_are_refused_unread(tmp_path):
    path = _save(tmp_path / "a.nii", _voxels(5, 6, 7))
    with pytest.raises(DataError, match=r"a file of \d+ bytes; at most 100"):
        decode(path, max_bytes=100)
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(DataError, match="not a regular file"):
            decode(tmp_path / name)
    (tmp_path / "empty.nii").write_bytes(b"")
    with pytest.raises(DataError, match="an empty file"):
        decode(tmp_path / "empty.nii")
    with pytest.raises(DataError, match=r"^No such file or directory$"):
        decode(tmp_path / "absent.nii")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_truncated_file_is_always_an_error(tmp_path, suffix):
    path = _save(tmp_path / f"a{suffix}", _voxels(5, 6, 7))
    content = path.read_bytes()
    for seed in range(50):
        path.write_bytes(content[: random.Random(seed).randrange(len(content))])
        with pytest.raises(DataError, match=r"^[^\n]{5,200}$"):
            decode(path)


def test_a_flipped_bit_in_a_compressed_file_is_seen(tmp_path):
    path = _save(tmp_path / "a.nii.gz", _voxels(5, 6, 7))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        decode(path)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_damaged_bytes_give_voxels_or_a_data_error_and_nothing_else(tmp_path, kind, suffix):
    path = _save(tmp_path / f"a{suffix}", _voxels(5, 6, 2), kind=kind)
    content, reasons = path.read_bytes(), []
    for seed in range(200):
        rng, damaged = random.Random(seed), bytearray(content)
        for _ in range(rng.choice((1, 3, 10, 50))):
            damaged[rng.randrange(len(damaged))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        path.write_bytes(damaged)
        try:
            decode(path)
        except DataError as error:
            reasons.append(str(error))
    assert all(re.fullmatch(r"[^\n]{5,200}", reason) for reason in reasons)
    assert 0 < len(reasons) < 200 or suffix == ".nii.gz"


# --- real files


@pytest.fixture
def formats(real_data: Path) -> Path:
    folder = real_data / "formats" / "nifti"
    if not folder.is_dir():
        pytest.skip("real images: no folder 'formats/nifti'")
    return folder


UNREADABLE = {
    "minc1_1_scale.mnc": "not a NIfTI file",
    "prostate_phantom_subvolume.nrrd": "not a NIfTI file",
    "prostate_phantom_subvolume-label.nrrd": "not a NIfTI file",
    "breast1_label.nrrd": "not a NIfTI file",
    "brain2_label.nrrd": "not a NIfTI file",
    "nifti1.hdr": "the header of a pair of files",
}
"""Each stands in docs/formats.md."""


def test_every_file_of_the_manifest_is_decoded_or_named(formats):
    agreed, refused = 0, {}
    for entry in json.loads((formats / "manifest.json").read_text()):
        path = formats / entry["path"]
        try:
            volume = decode(path)
        except DataError as error:
            refused[path.name] = str(error)
            continue
        assert volume.voxels.shape == tuple(entry["shape"])
        expected = np.dtype(entry["dtype"]).newbyteorder("=")
        assert volume.voxels.dtype == (np.float32 if expected.kind == "f" else expected), path.name
        assert (volume.voxels.min(), volume.voxels.max()) == pytest.approx((entry["min"], entry["max"]), rel=1e-6)
        assert int(np.isnan(volume.voxels).sum()) == entry["nan"]
        assert "".join(nib.aff2axcodes(volume.affine)) == entry["axcodes"]
        np.testing.assert_allclose((*volume.spacing, *volume.steps), entry["zooms"], rtol=1e-4)
        np.testing.assert_array_equal(volume.voxels, nib.load(path).get_fdata(dtype=np.float32))
        np.testing.assert_allclose(volume.affine, nib.load(path).affine, atol=1e-9)
        _check_way_back(volume)
        agreed += 1
    assert (agreed, refused) == (10, {**UNREADABLE, "nifti1.hdr": refused["nifti1.hdr"]})
    assert refused["nifti1.hdr"].startswith(UNREADABLE["nifti1.hdr"])


def _check_way_back(volume: Volume) -> None:
    back = turned(canonical(volume), volume.affine)
    again = nib.Nifti1Image.from_bytes(encode(back.voxels, back.affine, volume))
    np.testing.assert_array_equal(np.asarray(again.dataobj), volume.voxels)
    np.testing.assert_allclose(again.affine, volume.affine, rtol=1e-6, atol=1e-5)


def test_hippocampi_are_read_with_their_labels_in_one_place(real_data):
    folder = real_data / "hippocampus_msd"
    if not folder.is_dir():
        pytest.skip("real images: no folder 'hippocampus_msd'")
    images = sorted((folder / "images").glob("*.nii.gz"))
    assert len(images) == 110
    for path in images[:20]:
        image, label = decode(path), decode(folder / "labels" / path.name)
        assert image.voxels.shape == label.voxels.shape
        np.testing.assert_allclose(image.affine, label.affine, atol=1e-5)
        assert set(np.unique(label.voxels)) <= {0, 1, 2}
