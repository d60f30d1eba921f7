"""What the headers of DICOM and NIfTI files say, as counts that name nobody."""

import collections
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vaejax.config import DataConfig
from vaejax.datasets import isolation
from vaejax.datasets.stacks import is_nifti
from vaejax.errors import DataError


def count(paths: Iterable[Path], config: DataConfig) -> dict[str, Any] | None:
    """Counts over files; those that cannot be read are passed over.

    Returns:
        JSON values, or None where no file has such a header: `files`; `series`; `modality` and `stored` (bits or type of the
        voxels), each value -> files; `spacings`, rows of three lengths in mm, None where unknown, and files (of DICOM: between
        rows, columns, slices; of NIfTI: along the file's axes); `text`, files whose pixels may show text;
        `head`, files that say that they show one.
    """
    known = [facts for path in paths if (facts := (_of_nifti if is_nifti(path.name) else _of_dicom)(path, config))]
    if not known:
        return None
    counted = {name: collections.Counter(facts[name] for facts in known) for name in ("modality", "stored", "spacing")}
    return {
        "files": len(known),
        "series": len({facts["series"] for facts in known}),
        "modality": dict(counted["modality"].most_common()),
        "stored": dict(counted["stored"].most_common()),
        "spacings": [[*spacing, files] for spacing, files in counted["spacing"].most_common()],
        "text": sum(facts["text"] for facts in known),
        "head": sum(facts["head"] for facts in known),
    }


def _of_nifti(path: Path, config: DataConfig) -> dict[str, Any] | None:
    from vaejax.datasets import nifti

    try:
        volume = isolation.reader(nifti.decode, config)(path)
    except DataError:
        return None
    return {
        "series": str(path),
        "modality": "unknown (NIfTI)",
        "stored": volume.voxels.dtype.name,
        "spacing": tuple(round(length, 3) for length in volume.spacing),
        "text": False,
        "head": False,
    }


def _of_dicom(path: Path, config: DataConfig) -> dict[str, Any] | None:
    from vaejax.datasets import dicom

    try:
        header = isolation.reader(dicom.read_header, config)(path)
    except DataError:
        return None
    lengths = (*(header.spacing or (None, None)), header.gap or header.thickness)
    return {
        "series": header.series or str(path),
        "modality": header.modality or "unknown",
        "stored": f"{header.bits} bits",
        "spacing": tuple(None if length is None else round(length, 3) for length in lengths),
        "text": header.text,
        "head": header.head,
    }
