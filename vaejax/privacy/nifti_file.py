"""A NIfTI file for sharing: the bytes of its voxels under a header made anew of numbers."""

import gzip
from collections import Counter
from pathlib import Path

from vaejax.datasets import nifti
from vaejax.privacy.copies import Copy

_KEPT = (
    *(
        "dim",
        "datatype",
        "bitpix",
        "pixdim",
        "dim_info",
        "slice_start",
        "slice_end",
        "slice_code",
        "slice_duration",
        "xyzt_units",
    ),
    *("scl_slope", "scl_inter", "cal_max", "cal_min", "toffset", "intent_code", "intent_p1", "intent_p2", "intent_p3"),
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("srow_x", "srow_y", "srow_z"),
)
"""All else is text (descrip, aux_file, intent_name, db_name), not used any more, or follows from these."""

_LOOK = "a volume that does not say what it shows: of a head, a face can be rebuilt"


def copy(path: Path) -> Copy:
    """The same voxels, byte for byte, without text, extensions, and whatever follows the voxels; compressed if it was.

    Raises:
        DataError: the bare reason why the file cannot be shared.
    """
    old, voxels = nifti.stored(path)
    new = type(old)(endianness=old.endianness)
    counts: Counter[str] = Counter()
    for field in old.structarr.dtype.names:
        if field in _KEPT:
            new.structarr[field] = old.structarr[field]
            counts["kept"] += 1
        elif new.structarr[field].tobytes() != old.structarr[field].tobytes():
            counts["removed"] += 1
    rank = int(old["dim"][0])
    for field in ("dim", "pixdim"):  # nobody reads lengths beyond the last axis
        new.structarr[field][rank + 1 :] = 1
    start = -(-(new.sizeof_hdr + 4) // 16) * 16
    new["magic"] = new.single_magic
    new["vox_offset"] = start
    content = new.binaryblock.ljust(start, b"\0") + voxels
    with path.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    notes = (_LOOK,)
    return (
        Copy(gzip.compress(content, mtime=0), ".nii.gz", dict(counts), notes)
        if compressed
        else Copy(content, ".nii", dict(counts), notes)
    )
