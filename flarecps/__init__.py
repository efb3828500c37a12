"""3D Cross-Pseudo Supervision for medical image segmentation (Huang et al., FLARE 2022).

What most people import is offered here and imported when it is first asked for: ``import flarecps`` loads no library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flarecps.checkpoint import read_checkpoint
    from flarecps.data.datamodule import ScanDataModule
    from flarecps.inference.folders import segment_folder
    from flarecps.inference.segmenter import Segmenter
    from flarecps.inference.settings import SegmentationSettings
    from flarecps.methods import CrossPseudoSupervision, Supervised
    from flarecps.planning.plan import Plan, read_plan
    from flarecps.preprocessing.store import CaseStore
    from flarecps.training.module import SegmentationModule
    from flarecps.volumes.io import read_labels, read_volume, write_labels

__version__ = "0.1.0"
__all__ = [
    "CaseStore",
    "CrossPseudoSupervision",
    "Plan",
    "ScanDataModule",
    "SegmentationModule",
    "SegmentationSettings",
    "Segmenter",
    "Supervised",
    "__version__",
    "read_checkpoint",
    "read_labels",
    "read_plan",
    "read_volume",
    "segment_folder",
    "write_labels",
]

_HOMES = {
    "CaseStore": "preprocessing.store",
    "CrossPseudoSupervision": "methods",
    "Plan": "planning.plan",
    "ScanDataModule": "data.datamodule",
    "SegmentationModule": "training.module",
    "SegmentationSettings": "inference.settings",
    "Segmenter": "inference.segmenter",
    "Supervised": "methods",
    "read_checkpoint": "checkpoint",
    "read_labels": "volumes.io",
    "read_plan": "planning.plan",
    "read_volume": "volumes.io",
    "segment_folder": "inference.folders",
    "write_labels": "volumes.io",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'flarecps' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = globals()[name] = getattr(importlib.import_module(f"flarecps.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
