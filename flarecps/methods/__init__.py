"""Methods: how labelled and unlabelled patches teach. Pure tensor arithmetic over networks; no paths or training loop.

A method is chosen in a config by ``model.method``; one of a user's own is a class like those here
(docs/decisions/0009-methods.md).
"""

from flarecps.methods.copy_paste import BidirectionalCopyPaste
from flarecps.methods.cross_pseudo import CrossPseudoSupervision
from flarecps.methods.cut_mix import CrossPseudoCutMix
from flarecps.methods.dhc import DualDebiasedSupervision
from flarecps.methods.mean_teacher import MeanTeacher
from flarecps.methods.method import Batch, Losses, Method, outputs_of
from flarecps.methods.self_training import SelfTraining
from flarecps.methods.supervised import Supervised

__all__ = [
    "Batch",
    "BidirectionalCopyPaste",
    "CrossPseudoCutMix",
    "CrossPseudoSupervision",
    "DualDebiasedSupervision",
    "Losses",
    "MeanTeacher",
    "Method",
    "SelfTraining",
    "Supervised",
    "outputs_of",
]
