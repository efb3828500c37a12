"""What a training's config says of its method: ``model.method``, or the keys that stood in its place in older configs.

Plain dictionaries: who reads a config.yaml needs no class that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CROSS_PSEUDO = "flarecps.methods.CrossPseudoSupervision"
SUPERVISED = "flarecps.methods.Supervised"
DICE_CROSS_ENTROPY = "flarecps.losses.DiceCrossEntropy"
LCPS_SMOOTH = 100  # voxels in Lcps's Dice where no config says how to learn (docs/decisions/0030)

SWITCH = "cross_pseudo_supervision"  # a former key of ``model``: true for CROSS_PSEUDO, false for SUPERVISED
MOVED = ("loss", "ramp", "one_mean", "cps_on_labelled", "pseudo_labels")  # and those that are its arguments now
SAME_STEPS = "siblings_in_turn"  # an argument that decides how a step is computed, not what it is
_NAMES = {
    "flarecps.methods.SelfTraining": "self-training, one network",
    CROSS_PSEUDO: "cross-pseudo supervision, two siblings",
    "flarecps.methods.BidirectionalCopyPaste": "bidirectional copy-paste, one network and its average",
    "flarecps.methods.DualDebiasedSupervision": "cross-pseudo supervision with class weights, two siblings",
    "flarecps.methods.MeanTeacher": "mean teacher, one network and its average",
    "flarecps.methods.CrossPseudoCutMix": "cross-pseudo supervision with CutMix, two siblings",
    SUPERVISED: "supervised control, one network",
}


def with_method(model: Mapping[str, Any], class_path: str | None = None) -> dict[str, Any]:
    """A config's ``model`` with ``method`` in place of its former keys; itself where it has none.

    ``class_path`` names the method where the switch does not decide, as when another config comes later. What the
    method does not take is left out: the supervised control had a ramp, and did not look at it.

    >>> with_method({"clip_norm": 12.0, "ramp": {"start": 2}, "cross_pseudo_supervision": True})["method"]
    {'class_path': 'flarecps.methods.CrossPseudoSupervision', 'init_args': {'ramp': {'start': 2}}}
    """
    former = {key: model[key] for key in (SWITCH, *MOVED) if key in model}
    if not former:
        return dict(model)
    class_path = class_path or (SUPERVISED if former.get(SWITCH) is False else CROSS_PSEUDO)
    arguments = {key: former[key] for key in MOVED if key in former and takes(class_path, key)}
    kept = {key: value for key, value in model.items() if key not in former}
    method = _mapping(kept.pop("method", None))
    arguments |= _mapping(method.get("init_args"))
    return {**kept, "method": {"class_path": class_path, **method, "init_args": arguments}}


def takes(class_path: str, key: str) -> bool:
    """Whether a method takes a former key of ``model`` as an argument."""
    return key == "loss" or class_path.rpartition(".")[2] != SUPERVISED.rpartition(".")[2]


def method_of(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """A run's method, ``{"class_path": ..., "init_args": {...}}``, by its config.yaml; None where it does not say.

    Arguments that are null, which is what they are by default, are left out, so that runs written before and after an
    argument came to be are equal; and so is the one that changes no step.
    """
    model = config.get("model")
    if not isinstance(model, Mapping):
        return None
    method = with_method(_mapping(model.get("init_args", model))).get("method")
    if not isinstance(method, Mapping) or not method.get("class_path"):
        return None
    given = _mapping(method.get("init_args"))
    arguments = {key: value for key, value in given.items() if value is not None and key != SAME_STEPS}
    return {"class_path": str(method["class_path"]), "init_args": arguments}


def _mapping(content: Any) -> dict[str, Any]:
    """A config's mapping; {} for what is none, as in a config that someone edited."""
    return dict(content) if isinstance(content, Mapping) else {}


def method_name(config: Mapping[str, Any]) -> str:
    """A run's method in words, by its config.yaml; its class's name where it is none of ours, "" where it is not said.

    >>> method_name({"model": {"cross_pseudo_supervision": False}})
    'supervised control, one network'
    >>> method_name({"model": {"method": {"class_path": "my.MeanTeacher"}}})
    'MeanTeacher'
    """
    method = method_of(config)
    return "" if method is None else _NAMES.get(method["class_path"], method["class_path"].rpartition(".")[2])
