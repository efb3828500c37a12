"""SimpleITK, which writes NRRD and MHA."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flarecps.atomic import atomic_path
from flarecps.volumes.space import Space

WRITABLE = (".nrrd", ".mha")  # in one file; .nhdr and .mhd would come in two
PROBE_BYTES = 2**20
KINDS = {".nrrd": "nrrd", ".nhdr": "nrrd", ".mha": "mha", ".mhd": "mha"}


def write_file(path: Path, array: np.ndarray, space: Space, fields: Mapping[str, str] | None = None) -> None:
    """Write voxels (slice, row, column) as NRRD or MHA, by the path's suffix, compressed, atomically.

    ``fields`` become keys and values of the header. Raises WriteError when the file can't be written.
    """
    import SimpleITK as sitk  # 90 MB that reading does without

    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's C++ warnings would break into the progress display
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([float(value) for value in space.spacing_mm[::-1]])
    image.SetOrigin([float(value) for value in space.origin_mm])
    image.SetDirection([float(value) for value in space.direction])
    for key, value in (fields or {}).items():
        image.SetMetaData(key, value)
    with atomic_path(path) as partial:
        try:
            sitk.WriteImage(image, str(partial), useCompression=True)
        except RuntimeError as error:
            with open(partial, "ab") as file:  # where the disk refuses, the system says why
                file.write(bytes(PROBE_BYTES))
            raise OSError(errno.EIO, " ".join(str(error).split())[-200:], str(partial)) from error
