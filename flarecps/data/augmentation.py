"""The augmentation of a patch: nnU-Net v2's default set, with its order, probabilities and ranges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import torchio as tio

from flarecps.data.intensity_transforms import Brightness, Contrast, Gamma, GaussianBlur, GaussianNoise, LowResolution
from flarecps.data.spatial_transforms import DrawnTransform, Mirror, PatchPose, RotationAndScaling, swapped_ids
from flarecps.errors import ConfigError
from flarecps.planning.plan import Plan, volume_patch

ANISOTROPY = 3  # a patch whose longest edge is more than this times its first is augmented in-plane only (nnU-Net)
LONG_2D_PATCH = 1.5  # a 2D patch longer than this is rotated by 15° only, or much of it would be padding (nnU-Net)


@dataclass(frozen=True)
class AugmentationSettings:
    """How often and how strongly patches are changed; the defaults are nnU-Net v2's.

    Intensity ranges are in units of the normalised image. Ranges around 1 are drawn half below, half above.

    Args:
        rotation_probability: share of patches rotated about all axes.
        rotation_degrees: largest angle either way; by default 30, in-plane 180 (15 for a long 2D patch).
        scaling_probability: share of patches scaled.
        scaling_range: coordinates times this; above 1 shrinks the anatomy.
        noise_probability: share of patches with white noise added.
        noise_sd: its SD.
        blur_probability: share of patches that may be blurred.
        blur_channel_probability: of each channel of these.
        blur_sigma_voxels: the Gaussian's σ, drawn per axis.
        brightness_probability: share of patches multiplied by a factor.
        brightness_range: the factor.
        contrast_probability: share of patches whose distances from the mean are multiplied by a factor.
        contrast_range: the factor.
        low_resolution_probability: share of patches that may be sampled down and up again.
        low_resolution_channel_probability: of each channel of these.
        low_resolution_zoom: the coarse size as a share of the patch's.
        inverted_gamma_probability: share of patches whose negative is raised to a power.
        gamma_probability: share of patches raised to a power.
        gamma_range: the power.
        mirror_probability: of each axis that may be mirrored.
    """

    rotation_probability: float = 0.2
    rotation_degrees: float | None = None
    scaling_probability: float = 0.2
    scaling_range: tuple[float, float] = (0.7, 1.4)
    noise_probability: float = 0.1
    noise_sd: tuple[float, float] = (0.0, 0.1)
    blur_probability: float = 0.2
    blur_channel_probability: float = 0.5
    blur_sigma_voxels: tuple[float, float] = (0.5, 1.0)
    brightness_probability: float = 0.15
    brightness_range: tuple[float, float] = (0.75, 1.25)
    contrast_probability: float = 0.15
    contrast_range: tuple[float, float] = (0.75, 1.25)
    low_resolution_probability: float = 0.25
    low_resolution_channel_probability: float = 0.5
    low_resolution_zoom: tuple[float, float] = (0.5, 1.0)
    inverted_gamma_probability: float = 0.1
    gamma_probability: float = 0.3
    gamma_range: tuple[float, float] = (0.7, 1.5)
    mirror_probability: float = 0.5

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name.endswith("_probability") and not 0 <= value <= 1:
                raise ConfigError(f"augmentation.{entry.name} is {value}; expected a probability between 0 and 1")
            if isinstance(value, Sequence) and not (len(value) == 2 and 0 <= value[0] <= value[1]):
                raise ConfigError(f"augmentation.{entry.name} is {value}; expected [low, high] with 0 <= low <= high")


NO_AUGMENTATION = replace(  # patches as they are stored
    AugmentationSettings(),
    **{entry.name: 0.0 for entry in fields(AugmentationSettings) if entry.name.endswith("_probability")},  # type: ignore[arg-type]  # all of them are floats
)


class _OwnTransform(DrawnTransform):
    """A TorchIO transform of the user's: its numbers, which TorchIO draws from torch's global generator, come from the
    patch's own generator like all others.

    Raises ConfigError where it changes the patch's size.
    """

    def __init__(self, transform: tio.Transform) -> None:
        super().__init__()
        self.transform = transform

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """The transformed subject: image float32, labels uint8, sizes as before."""
        before = {name: image.data for name, image in subject.get_images_dict(intensity_only=False).items()}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(subject.generator.integers(2**63)))
            subject = self.transform(subject)
        for name, data in before.items():
            changed = subject.get_image(name).data
            if changed.shape != data.shape:
                raise ConfigError(
                    f"data.transforms: {type(self.transform).__name__} makes a patch of {tuple(changed.shape[1:])} "
                    f"voxels from one of {tuple(data.shape[1:])}; expected a transform that keeps the size"
                )
            subject.get_image(name).set_data(changed.to(data.dtype))
        return subject


@dataclass(frozen=True)
class PatchAugmentation:
    """What happens to a patch between the store and the batch.

    First ``draw_pose`` says how the patch lies in its scan, and so which region must be read; then calling the object
    on a subject (``image``, optionally ``labels``, ``generator``, ``pose``) carries everything out.
    """

    spatial: RotationAndScaling
    steps: tuple[DrawnTransform, ...]  # in this order, after it

    def draw_pose(self, generator: np.random.Generator) -> PatchPose | None:
        """The pose of the next patch; None for most: a plain crop."""
        return self.spatial.draw_pose(generator)

    def __call__(self, subject: tio.Subject) -> tio.Subject:
        """The augmented subject, its images of the patch's size."""
        subject = self.spatial(subject)
        for step in self.steps:
            subject = step(subject)
        return subject


def patch_augmentation(
    settings: AugmentationSettings,
    plan: Plan,
    patch_voxels: Sequence[int],
    mirror_axes: Sequence[int] | None = None,
    swap_left_right: bool = False,
    transforms: Sequence[tio.Transform] = (),
) -> PatchAugmentation:
    """The augmentation of patches of ``patch_voxels``, (slice, row, column) or in 2D (row, column).

    ``mirror_axes`` counts over the patch's own axes; None: all of them. ``swap_left_right`` exchanges the plan's
    paired labels when the axis that runs from left to right (found from the plan's axis order) is mirrored.
    ``transforms`` of the user's come last, after mirroring. Raises ConfigError for axes that do not exist, and for
    a swap without pairs.
    """
    dimensions = len(patch_voxels)
    patch = volume_patch(patch_voxels)
    is_flat = dimensions == 2
    in_plane = is_flat or max(patch) > ANISOTROPY * patch[0]
    degrees = settings.rotation_degrees
    if degrees is None:
        degrees = 30.0 if not in_plane else 180.0
        if is_flat and max(patch_voxels) > LONG_2D_PATCH * min(patch_voxels):
            degrees = 15.0
    axes = tuple(range(dimensions)) if mirror_axes is None else tuple(mirror_axes)
    if len(set(axes)) != len(axes) or not all(0 <= axis < dimensions for axis in axes):
        names = "0 slice, 1 row, 2 column" if dimensions == 3 else "0 row, 1 column"
        raise ConfigError(f"mirror_axes is {list(axes)}; expected each of the patch's axes at most once ({names})")
    if swap_left_right and not plan.left_right_pairs:
        raise ConfigError(
            "swap_left_right is on, but the plan names no left_right_pairs: add them to the plan, or switch it off"
        )
    mirror = Mirror(
        axes=[axis + 3 - dimensions for axis in axes],
        probability=settings.mirror_probability,
        swaps=swapped_ids(plan.class_count, plan.left_right_pairs) if swap_left_right else None,
        lateral_axis=plan.lateral_axis,
    )
    spatial = RotationAndScaling(
        patch, in_plane, settings.rotation_probability, degrees, settings.scaling_probability, settings.scaling_range
    )
    blurred, coarse = settings.blur_channel_probability, settings.low_resolution_channel_probability
    return PatchAugmentation(
        spatial,
        (
            GaussianNoise(settings.noise_probability, settings.noise_sd),
            GaussianBlur(settings.blur_probability, settings.blur_sigma_voxels, blurred),
            Brightness(settings.brightness_probability, settings.brightness_range),
            Contrast(settings.contrast_probability, settings.contrast_range),
            LowResolution(settings.low_resolution_probability, settings.low_resolution_zoom, coarse, in_plane),
            Gamma(settings.inverted_gamma_probability, settings.gamma_range, inverted=True),
            Gamma(settings.gamma_probability, settings.gamma_range, inverted=False),
            mirror,
            *map(_OwnTransform, transforms),
        ),
    )
