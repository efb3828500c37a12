"""The runs of the kbp experiment: which arms, with how many labels, from which seeds, and in which order.

An arm is a config of ``configs/`` and what differs from it. All arms share patches, batch, network, optimiser and its
schedule's shape; what an arm changes is written here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

EPOCHS = 40  # of 50 steps, as in configs/kbp_3d.yaml
RAMP_START = 14  # the last epoch in which λ is 0, as there


def equal_compute_epochs(epochs: int = EPOCHS, ramp_start: int = RAMP_START) -> int:
    """Epochs in which one network on the labelled patches computes as much as CPS does in ``epochs``.

    In units of one network on the labelled half of a batch: CPS pays 2 while λ is 0 (two networks, labelled patches
    only) and 4 afterwards (both halves of the batch).

    >>> equal_compute_epochs(40, 14)
    130
    """
    without = ramp_start + 1
    return 2 * without + 4 * (epochs - without)


@dataclass(frozen=True)
class Arm:
    """One way of training. ``siblings`` are those that are scored, the first is the primary figure.

    ``teachers`` is the name of the arm whose trainings, of this seed and the next, label the unlabelled scans first.
    """

    name: str
    title: str
    config: str
    overrides: tuple[str, ...] = ()
    intensity: str = "global"
    siblings: tuple[str, ...] = ("1",)
    teachers: str = ""


@dataclass(frozen=True)
class Run:
    """One training: an arm with so many labelled scans from one seed."""

    arm: Arm
    labels: int
    seed: int

    @property
    def folder(self) -> str:
        """Where its files lie, below the results and below the scratch folder."""
        return f"{self.labels}_labelled/{self.arm.name}/seed_{self.seed}"


CPS_CONFIG, CONTROL_CONFIG = "kbp_3d.yaml", "kbp_3d_supervised.yaml"
LONG = equal_compute_epochs()


def _epochs(number: int) -> tuple[str, ...]:
    return ("--trainer.max_epochs", str(number), "--model.scheduler.init_args.total_iters", str(number))


LONGER = _epochs(LONG)

CPS = Arm("cps", "CPS", CPS_CONFIG, siblings=("1", "average"))
CONTROL = Arm("control", "control, equal steps", CONTROL_CONFIG)
CONTROL_LONG = Arm("control_long", "control, equal compute", CONTROL_CONFIG, LONGER)
MAIN_ARMS = (CPS, CONTROL, CONTROL_LONG)

CPS_LONG = Arm("cps_long", f"CPS, {50 * LONG} steps", CPS_CONFIG,
               (*LONGER, "--model.method.init_args.ramp", "{final: 0.5, length: 45, start: 45}"),
               siblings=("1", "average"))  # fmt: skip

ABLATIONS = (
    Arm("cps_constant_lambda", "λ = 0.5 from the start", CPS_CONFIG,
        ("--model.method.init_args.ramp", "{final: 0.5, length: 0, start: 0}"), siblings=("1", "average")),
    Arm("cps_small_lambda", "λ rises to 0.1", CPS_CONFIG,
        ("--model.method.init_args.ramp", "{final: 0.1, length: 14, start: 14}"), siblings=("1", "average")),
    Arm("cps_unlabelled_only", "Lcps on unlabelled patches only", CPS_CONFIG,
        ("--model.method.init_args.cps_on_labelled", "false"), siblings=("1", "average")),
    Arm("cps_confidence", "voxels with confidence ≥ 0.9 only", CPS_CONFIG,
        ("--model.method.init_args.pseudo_labels.class_path", "flarecps.losses.VoxelConfidence",
         "--model.method.init_args.pseudo_labels.init_args.threshold", "0.9"), siblings=("1", "average")),
    Arm("cps_no_swap", "mirrored without exchanging left and right", CPS_CONFIG,
        ("--data.swap_left_right", "false"), siblings=("1", "average")),
    Arm("cps_foreground", "CPS, intensities of labelled structures", CPS_CONFIG,
        intensity="foreground", siblings=("1", "average")),
    Arm("control_foreground", "control, intensities of labelled structures", CONTROL_CONFIG, intensity="foreground"),
    Arm("control_no_swap", "control, mirrored without exchanging left and right", CONTROL_CONFIG,
        ("--data.swap_left_right", "false")),
    Arm("cps_plain", "CPS, patches not augmented", CPS_CONFIG,
        ("--data.augmentation", "false"), siblings=("1", "average")),
    Arm("control_plain", "control, patches not augmented", CONTROL_CONFIG, ("--data.augmentation", "false")),
)  # fmt: skip

# The screen: which Lcps to take, judged on 25 training scans whose labels are withheld and which no training sees;
# test scans play no part. Intensities of labelled structures in all, which need no labels of the unlabelled scans.
_LOSS = "--model.method.init_args.pseudo_label_loss"
_ENTROPY = (f"{_LOSS}=flarecps.losses.CrossEntropy",)
_ONE_MEAN = ("--model.method.init_args.one_mean", "true")
_EQUAL_STEPS = ("--model.method.init_args.equal_steps", "true")
_CUT_MIX = (
    "--model.method=flarecps.methods.CrossPseudoCutMix",
    "--model.method.init_args.loss=flarecps.losses.DiceCrossEntropy",
    "--model.method.init_args.loss.init_args.batch_dice=true",
    "--model.method.init_args.ramp={final: 0.5, length: 14, start: 14}",
)
_COPY_PASTE = (
    "--model.method=flarecps.methods.BidirectionalCopyPaste",
    "--model.method.init_args.loss=flarecps.losses.DiceCrossEntropy",
    "--model.method.init_args.loss.init_args.batch_dice=true",
    "--model.method.init_args.pretrained_epochs=10",
)
_MEAN_TEACHER = (
    "--model.method=flarecps.methods.MeanTeacher",
    "--model.method.init_args.loss=flarecps.losses.DiceCrossEntropy",
    "--model.method.init_args.loss.init_args.batch_dice=true",
    "--model.method.init_args.ramp={final: 0.1, length: 14, start: 14}",
)
_SELF_TRAINING = (
    "--model.method=flarecps.methods.SelfTraining",
    "--model.method.init_args.loss=flarecps.losses.DiceCrossEntropy",
    "--model.method.init_args.loss.init_args.batch_dice=true",
    "--data.global_batch={labelled: 2, pseudo_labelled: 2}",
)
SCREEN_ARMS = (
    Arm("control", "control, equal steps", CONTROL_CONFIG, intensity="foreground"),
    Arm("cps", "CPS, the paper's Lcps", CPS_CONFIG, intensity="foreground", siblings=("1", "average")),
    Arm("cps_entropy", "cross-entropy alone", CPS_CONFIG, _ENTROPY, intensity="foreground"),
    Arm("cps_entropy_mean_scaled", "cross-entropy alone, one mean, step / (1 + λ)", CPS_CONFIG,
        (*_ENTROPY, *_ONE_MEAN, *_EQUAL_STEPS), intensity="foreground"),
    Arm("copy_paste", "BCP", CPS_CONFIG, _COPY_PASTE, intensity="foreground"),
    Arm("mean_teacher", "mean teacher", CPS_CONFIG, _MEAN_TEACHER, intensity="foreground"),
    Arm("cut_mix", "CutMix, cross-entropy alone", CPS_CONFIG, _CUT_MIX, intensity="foreground"),
    Arm("cut_mix_scaled", "CutMix, cross-entropy alone, step / (1 + λ)", CPS_CONFIG,
        (*_CUT_MIX, *_EQUAL_STEPS), intensity="foreground"),
    Arm("cps_smooth", "Dice with a smooth of 100 voxels", CPS_CONFIG,
        (f"{_LOSS}=flarecps.losses.DiceCrossEntropy", f"{_LOSS}.init_args.batch_dice=true",
         f"{_LOSS}.init_args.smooth=100"), intensity="foreground"),
    Arm("cps_one_mean", "one mean", CPS_CONFIG, _ONE_MEAN, intensity="foreground"),
    Arm("cps_scaled", "step / (1 + 2λ)", CPS_CONFIG, _EQUAL_STEPS, intensity="foreground"),
    Arm("control_long", "control, equal compute", CONTROL_CONFIG, LONGER, intensity="foreground"),
    Arm("self", "self-training, 2000 steps after two controls of 2000", CONTROL_CONFIG, _SELF_TRAINING,
        intensity="foreground", teachers="control"),
    Arm("self_long", "self-training, 3250 steps after two controls of 6500", CONTROL_CONFIG,
        (*_SELF_TRAINING, *_epochs(LONG // 2)), intensity="foreground", teachers="control_long"),
    Arm("self_longer", "self-training, 6500 steps after two controls of 6500", CONTROL_CONFIG,
        (*_SELF_TRAINING, *LONGER), intensity="foreground", teachers="control_long"),
    # as much as the three arms above compute in all, teachers counted: a step of theirs has twice as many patches
    Arm("control_of_self", "control, 8000 steps", CONTROL_CONFIG, _epochs(4 * EPOCHS), intensity="foreground"),
    Arm("control_of_self_long", "control, 19500 steps", CONTROL_CONFIG, _epochs(3 * LONG), intensity="foreground"),
    Arm("control_of_self_longer", "control, 26000 steps", CONTROL_CONFIG, _epochs(4 * LONG), intensity="foreground"),
)  # fmt: skip
SCREEN = {arm.name: arm for arm in SCREEN_ARMS}
SCREEN_SCANS = 25

ARMS = {arm.name: arm for arm in (*MAIN_ARMS, CPS_LONG, *ABLATIONS)}
FEW_LABELS = (10, 5, 20)
ALL_LABELS = 142


def ordered_runs(seeds: int = 3) -> Iterator[Run]:
    """All runs, the most telling first: 10 labels, the ceiling, 5 and 20 labels, ablations; long CPS with 5 labels."""
    yield from (Run(arm, 10, seed) for seed in range(seeds) for arm in MAIN_ARMS)
    yield from (Run(arm, ALL_LABELS, seed) for seed in range(seeds) for arm in (CONTROL_LONG, CONTROL))
    yield from (Run(arm, labels, seed) for labels in (5, 20) for seed in range(seeds) for arm in MAIN_ARMS)
    yield from (Run(arm, 10, seed) for seed in range(seeds) for arm in (CPS_LONG, *ABLATIONS))
    yield from (Run(CPS_LONG, 5, seed) for seed in range(seeds))


def screen_runs(seeds: int = 3) -> Iterator[Run]:
    """The runs of the screen, seed by seed."""
    yield from (Run(arm, 10, seed) for seed in range(seeds) for arm in SCREEN_ARMS)
