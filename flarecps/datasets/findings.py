"""What the data set doctor can find: every kind with its severity, meaning and cure, and one finding of a kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from flarecps.errors import DatasetError

Severity: TypeAlias = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # worst first


class Kind(NamedTuple):
    """One kind of finding. Errors break training or make its result false; notes are for the record."""

    severity: Severity
    title: str
    meaning: str
    cure: str


KINDS: dict[str, Kind] = {
    # the folder
    "image-without-labels": Kind(
        "error", "Image without labels", "A training image has no label map of its name.",
        "Add the label map, or move the image to imagesUn/ (unlabelled)."),
    "labels-without-image": Kind(
        "error", "Labels without image", "A label map has no image of its name.",
        "Add the image, or remove the label map."),
    "channel-count": Kind(
        "error", "Wrong number of channels", "A case has more, fewer or other channel files than dataset.json names.",
        "Give one file per channel: CASE_0000, CASE_0001, …"),
    "stray-file": Kind(
        "error", "A file too many", "A scan or label map without channel number lies among a case's channel files.",
        "Move it elsewhere: a label map belongs into the folder of labels."),
    "stale-list": Kind(
        "warning", "A list of other files", "dataset.json lists files, as nnU-Net v1 did, none of which exists.",
        'Remove the list from dataset.json ("training" or "dataset"); the folders say what there is.'),
    "same-name": Kind(
        "error", "One name, two cases", "Two images in different folders have the same case name.",
        "Rename one of them (and its labels)."),
    "letter-case": Kind(
        "error", "Names alike but for case", "Case names differ in capital and small letters alone.",
        "Rename one of them: on macOS and Windows, and on many shares, each replaces the other's files."),
    "odd-name": Kind(
        "error", "Not a file's name", "A case is called by what can't be a file's name on every system.",
        "Rename the case and its files: letters, digits, dashes, underscores."),
    "missing-file": Kind(
        "error", "Listed, but not there", "dataset.json or splits.json names a file or case that is not in the folder.",
        "Complete the download, or take the name off the list."),
    "label-ids": Kind(
        "error", "Label ids with gaps", "The ids in dataset.json are not 0, 1, 2, … without gaps.",
        "Renumber label maps and dataset.json: the doctor proposes the map and the command (flarecps relabel)."),
    # the file
    "empty-file": Kind("error", "Empty file", "A file has no bytes.", "Copy or download it again."),
    "unreadable": Kind(
        "error", "Unreadable file", "A file is truncated, damaged, or not an image.", "Copy or download it again."),
    "not-examined": Kind(
        "error", "Could not be examined", "Examining the case failed, usually for want of memory.",
        "Use fewer workers; if it fails alone, look at the file."),
    "not-finite": Kind(
        "error", "NaN or infinite voxels", "Some voxels are not numbers.",
        "Export the scan again, or fill them with the value of air."),
    "missing-slices": Kind(
        "error", "Missing or doubled slices",
        "The slices of a DICOM series are not evenly spaced, or one lies beside the others.",
        "Copy the series again; if the scanner changed its step, resample it to an even one."),
    "several-stacks": Kind(
        "error", "Slices that make no single stack",
        "Slices of a DICOM folder contradict each other: several series, phases or echoes, orientations or sizes.",
        "Call the label map by its stack (CASE_STACK), or put the slices of each stack into a folder of its own."),
    "odd-slices": Kind(
        "note", "Unusual DICOM series", "Localisers were passed over, slices there twice counted once, or the like.",
        "Nothing, if the scan's pictures are right."),
    "one-slice": Kind("error", "One slice", "The scan has one voxel along an axis.", "Give the whole series."),
    # the grid
    "grid-mismatch": Kind(
        "error", "Labels on another grid",
        "Label map and image, or two channels, differ in size, or place voxels a tenth of a voxel apart.",
        "Resample to the image's grid (labels by nearest neighbour), or correct the header that is wrong."),
    "few-voxels": Kind(
        "warning", "Too few slices or voxels", "Fewer than 8 voxels along an axis.",
        "Check that the series is complete; leave it out if it is a localiser."),
    "extreme-spacing": Kind(
        "warning", "Extreme spacing", "Voxels smaller than 0.1 mm or larger than 10 mm.",
        "Check the header: metres instead of millimetres, or no spacing at all?"),
    "extreme-extent": Kind(
        "warning", "Extreme field of view", "Less than 30 mm or more than 2.5 m along an axis.", "Check the spacing."),
    "header": Kind(
        "warning", "Header contradicts itself", "Units, pixdim, sform and qform of the header disagree.",
        "Convert the scan from DICOM again, or check that the matrix that was used is the right one."),
    "no-orientation": Kind(
        "warning", "No orientation in the header", "sform and qform codes are 0: left and right are a guess.",
        "Convert the scan from DICOM again, or set the codes once you know the orientation."),
    "sheared": Kind(
        "warning", "Sheared axes", "The axes are not at right angles, as after a gantry tilt.",
        "Resample the scan to a straight grid, or accept the nearest orthonormal frame."),
    "odd-orientation": Kind(
        "note", "Stored unlike the others", "A few scans are stored in another voxel order than all others.",
        "Nothing, if their headers are right; look at their pictures."),
    # intensities
    "constant": Kind("error", "Constant image", "Every voxel has the same value.", "Export the scan again."),
    "not-rescaled": Kind(
        "error", "Stored values, not HU", "Air lies near 0 and soft tissue near 1000: HU plus 1000 or 1024.",
        "Apply rescale slope and intercept (usually: subtract 1024)."),
    "rescaled-twice": Kind(
        "error", "Rescaled twice", "Almost nothing lies where soft tissue should: the intercept was applied twice.",
        "Apply rescale slope and intercept once (usually: add 1024 to what is stored)."),
    "normalised": Kind(
        "error", "Normalised image", "All values span less than 64: normalised already, HU are lost.",
        "Use the original scan: the plan normalises intensities itself."),
    "eight-bit": Kind(
        "error", "Windowed to 8 bits", "Values from 0 to 255: a picture of the scan, not the scan.",
        "Use the original scan with HU."),
    "not-ct": Kind(
        "error", "Not CT", "The values are not HU in any way the doctor knows.",
        "Name the true modality in dataset.json, or use the original scan."),
    "clipped": Kind(
        "warning", "Clipped intensities", "Many voxels share the highest or lowest value: clipped to a window.",
        "Use the original scan if you can; never mix clipped and unclipped scans."),
    "no-air": Kind(
        "warning", "No air in a CT", "Nothing below -500 HU: cropped tightly, windowed or masked.",
        "Check that the values are plain HU."),
    "very-dense": Kind(
        "note", "Values beyond bone", "Values above 5000 HU: metal on an extended scale, or an overflow.",
        "Nothing, if there is metal; the plan's percentiles ignore a few voxels."),
    # orientation
    "sides-swapped": Kind(
        "error", "Sides swapped", "A right organ lies left of its left partner.",
        "Correct the header or flip the scan back; if only the labels are exchanged, exchange the two ids."),
    "liver-left": Kind(
        "error", "Liver on the left", "The liver lies left of the spleen.",
        "Correct the header or flip scan and labels back (unless it is situs inversus)."),
    "upside-down": Kind(
        "error", "Upside down", "Organs that lie above others lie below them.",
        "Correct the header or flip scan and labels along the slices."),
    "back-to-front": Kind(
        "error", "Back to front", "Organs that lie in front of others lie behind them.",
        "Correct the header or flip scan and labels along the rows."),
    "maybe-liver-left": Kind(
        "warning", "Liver in the left part", "The liver (no spleen to compare with) lies left of the middle.",
        "Look at the picture: is the orientation right?"),
    "maybe-upside-down": Kind(
        "warning", "Perhaps upside down", "Lung lies at the lower end of a torso and none at the upper (CT).",
        "Look at the picture: correct the header if it is upside down."),
    "maybe-back-to-front": Kind(
        "warning", "Perhaps back to front", "The bones of a torso lie in its front half (CT).",
        "Look at the picture: correct the header if the spine is in front."),
    # labels
    "unknown-labels": Kind(
        "error", "Unknown labels", "A label map holds ids that dataset.json does not name.",
        "Name them, clear them, or renumber: the doctor proposes a map (flarecps relabel)."),
    "fractional-labels": Kind(
        "error", "Fractions as labels", "A label map holds numbers that are not whole.",
        "Resample the original labels by nearest neighbour; check that it is not the scan."),
    "negative-labels": Kind(
        "error", "Negative labels", "A label map holds numbers below 0.",
        "Renumber them with flarecps relabel; check that it is not the scan."),
    "never-drawn": Kind(
        "error", "Never drawn", "No labelled case holds a structure that dataset.json names.",
        "Remove it from dataset.json, or label it somewhere."),
    "empty-labels": Kind(
        "warning", "Empty labels", "A label map is all background.",
        "If nothing was drawn, list the case as unlabelled in splits.json."),
    "misplaced-labels": Kind(
        "warning", "Labels on air", "More than half of a solid structure lies on air (CT).",
        "Check that the labels belong to this scan and to its grid."),
    "same-labels": Kind(
        "warning", "One label map, two scans", "Two different scans have exactly the same labels.",
        "Find out which scan the labels belong to."),
    "not-annotated": Kind(
        "warning", "Drawn, though listed as not annotated", "A structure is drawn that splits.json does not list here.",
        'Add it to the case\'s list under "annotated", or clear it.'),
    "absent": Kind(
        "note", "Structure missing", "A structure has no voxel: absent in the patient, or not drawn?",
        'If not drawn, list the drawn ids under "annotated" in splits.json (--annotated FILE writes a proposal).'),
    "float-labels": Kind(
        "note", "Labels as floats", "Whole labels stored as floating-point numbers.",
        "Nothing; as integers the files would be smaller."),
    # pools
    "leak": Kind(
        "error", "Leak", "The same scan, or part of it, is used in training and to judge it.",
        "Remove it from one of the two."),
    "pool-overlap": Kind(
        "warning", "Labelled and unlabelled", "The same scan is in the labelled set and in the unlabelled pool.",
        "Remove it from the unlabelled pool."),
    "duplicate": Kind(
        "warning", "Duplicate", "The same scan, or part of it, occurs several times in one role.", "Keep one."),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing to know about a case (or, with an empty name, about the data set)."""

    case: str
    code: str  # a key of KINDS
    found: str
    expected: str
    cure: str = ""  # the kind's own where empty

    def __post_init__(self) -> None:
        if not self.cure:
            object.__setattr__(self, "cure", KINDS[self.code].cure)

    @property
    def severity(self) -> Severity:
        """How bad it is, by its kind."""
        return KINDS[self.code].severity

    @property
    def message(self) -> str:
        """Found, expected and cure in one line."""
        return f"{self.found}; expected {self.expected}. {self.cure}"

    def to_json(self) -> dict[str, Any]:
        """The finding as plain JSON types."""
        return {
            "case": self.case,
            "severity": self.severity,
            "code": self.code,
            "title": KINDS[self.code].title,
            "found": self.found,
            "expected": self.expected,
            "cure": self.cure,
            "message": self.message,
        }


@dataclass
class FindingCollector:
    """What is wrong with a folder: kept for the doctor with ``collect``; without, an error is raised at once."""

    collect: bool = False
    findings: list[Finding] = field(default_factory=list)
    faults: dict[str, str] = field(default_factory=dict)  # by case: why it alone can't be used

    def add(self, case: str, code: str, found: str, expected: str, cure: str = "") -> None:
        """Keep the finding, or raise it as a DatasetError where it is an error."""
        finding = Finding(case, code, found, expected, cure)
        if not self.collect and finding.severity == "error":
            raise DatasetError(finding.message)
        self.findings.append(finding)

    def add_fault(self, case: str, code: str, found: str, expected: str, cure: str = "") -> None:
        """Keep a finding that concerns one case alone: it is left out and reported, the others are done."""
        finding = Finding(case, code, found, expected, cure)
        self.findings.append(finding)
        self.faults[case] = finding.message
