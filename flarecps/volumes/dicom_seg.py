"""Labels as a DICOM segmentation object, written by highdicom: a segment per structure on the scan's own slices."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

import flarecps
from flarecps.anatomy import Organ
from flarecps.errors import ConfigError, ScanError, visible
from flarecps.typing import LabelArray
from flarecps.volumes.dicom_results import PROGRAM, UTF_8, SourceSeries, write_dicom

SIDES = {"right": "Right", "left": "Left"}
LONGEST_NAME = 64  # characters of a segment's label
SERIES_NUMBER = 901  # beyond a scanner's own


def write_dicom_seg(path: Path, labels: LabelArray, series: SourceSeries, organs: Sequence[Organ]) -> None:
    """Write labels (slice, row, column), in the order of ``series``, as a binary DICOM SEG, atomically.

    Segment numbers are the organs' ids, which are 1, 2, 3, …; frames without a structure are left out. Raises
    ConfigError when the package of the extra ``dicom`` is missing, ScanError for a series that highdicom refuses.
    """
    hd = import_highdicom()
    first = series.slices[0]
    files = list({id(header): header for header in series.headers}.values())
    frames = labels
    if first.frame is not None:
        if len(files) > 1:
            raise ScanError(f"{series.path}: several multi-frame files; a DICOM SEG can refer to one: use --rtstruct")
        frames = np.zeros((int(files[0].NumberOfFrames), *labels.shape[1:]), np.uint8)
        for one, plane in zip(series.slices, labels, strict=True):
            frames[one.frame] = plane
    from pydicom.sr.codedict import codes  # a quarter of a second, which only those pay who ask for it

    algorithm = hd.AlgorithmIdentificationSequence(PROGRAM, codes.DCM.ArtificialIntelligence, flarecps.__version__)
    for header in files:
        if not header.get("SliceThickness"):  # highdicom wants one, though it is given the grid's below
            header.SliceThickness = round(series.step_mm, 6)
    described = [_described(hd, organ, algorithm) for organ in organs]
    try:
        content = hd.seg.Segmentation(
            source_images=files,
            pixel_array=frames,
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=generate_uid(),
            series_number=SERIES_NUMBER,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer=PROGRAM,
            manufacturer_model_name=PROGRAM,
            software_versions=flarecps.__version__,
            device_serial_number=flarecps.__version__,
            pixel_measures=hd.PixelMeasuresSequence(first.spacing_mm, series.step_mm, series.step_mm),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # what it raises on headers that lack something
        raise ScanError(
            f"{series.path}: highdicom makes no segmentation of it ({' '.join(str(error).split())[:200]}); expected "
            "complete headers: export the series again, or leave out --dicom-seg"
        ) from error
    content.SpecificCharacterSet = UTF_8
    content.SeriesDescription = "Segmentation"
    write_dicom(path, content)


def import_highdicom() -> Any:
    """The package highdicom; ConfigError where it is not installed."""
    try:
        import highdicom

        logging.getLogger("highdicom").setLevel(logging.ERROR)  # it warns of scans in which nothing was found
    except ImportError as error:
        raise ConfigError(f"--dicom-seg needs the package {error.name}: pip install highdicom") from error
    return highdicom


def _described(hd: Any, organ: Organ, algorithm: Any) -> Any:
    from pydicom.sr.codedict import codes

    kind, side = coded(organ.name)
    described = hd.seg.SegmentDescription(
        segment_number=organ.id,
        segment_label=visible(organ.name)[:LONGEST_NAME],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        display_color=hd.color.CIELabColor.from_rgb(*organ.colour),
    )
    if side is not None:
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [
            hd.sr.CodedConcept.from_code(side)
        ]
    return described


def coded(name: str) -> tuple[Code, Code | None]:
    """The SNOMED code of a structure by its name, as the standard lists anatomy (CID 7192), and that of its side.

    Names that the standard does not list are an anatomical structure, without more.

    >>> coded("left adrenal gland")[0].meaning, coded("left adrenal gland")[1].meaning, coded("zone 3")[0].meaning
    ('Adrenal gland', 'Left', 'Anatomical Structure')
    """
    from pydicom.sr.codedict import codes

    words = name.lower().replace("_", " ").split()
    sides = [SIDES[word] for word in words if word in SIDES]
    keyword = "".join(word.capitalize() for word in words if word not in SIDES)
    if len(sides) < 2 and keyword in codes.cid7192.dir():
        return getattr(codes.cid7192, keyword), getattr(codes.SCT, sides[0]) if sides else None
    return codes.SCT.AnatomicalStructure, None
