"""TorchIO transforms of the user's keep the promises of all others; TorchIO is used by its public names alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torchio as tio
from runs import assert_same_training
from stores import TinyStores, fit_words
from test_datamodule import assert_equal, epochs, module
from test_datamodule import store as store  # a fixture

import flarecps.data
from flarecps.cli.main import main
from flarecps.errors import ConfigError

DATA = Path(flarecps.data.__file__).parent


@pytest.mark.parametrize("augmentation", [True, False])
def test_own_transforms_depend_on_the_address_alone(store, augmentation):
    own = [tio.RandomBiasField(), tio.RandomNoise(std=(0.5, 0.5)), tio.RandomAffine(degrees=20)]
    torch.manual_seed(3)
    one = epochs(module(store, augmentation=augmentation, transforms=own), 2)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    assert_equal(one, epochs(module(store, augmentation=augmentation, transforms=own), 2))
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    assert_equal(one, epochs(module(store, augmentation=augmentation, transforms=own, workers=2), 2))
    plain = epochs(module(store, augmentation=augmentation), 2)
    first, without = (some[0][0]["labelled"] for some in (one, plain))
    assert first["case"] == without["case"]
    assert torch.equal(first["location"], without["location"])
    assert not torch.equal(first["image"], without["image"])
    assert first["labels"].dtype == torch.uint8
    assert set(first["labels"].unique().tolist()) <= set(range(4)), "labels are not interpolated"


def test_a_transform_that_changes_the_size_is_named(store):
    with pytest.raises(ConfigError, match=r"data\.transforms: Pad makes a patch of \(10, 14, 10\) voxels"):
        epochs(module(store, transforms=[tio.Pad(1)]), 1)


def test_by_class_path_on_the_command_line(
    tiny_stores: TinyStores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_transforms.py").write_text(
        "import torch\nimport torchio as tio\n\n\n"
        "class Shift(tio.IntensityTransform):\n"
        "    def __init__(self, most: float = 1.0) -> None:\n"
        "        super().__init__()\n"
        "        self.most = most\n"
        "        self.args_names = ['most']\n\n"
        "    def apply_transform(self, subject: tio.Subject) -> tio.Subject:\n"
        "        for image in self.get_images(subject):\n"
        "            image.set_data(image.data + self.most * torch.rand(1))\n"
        "        return subject\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    own = "[{class_path: my_transforms.Shift, init_args: {most: 2}}, {class_path: torchio.RandomBiasField}]"
    batch = ["--data.global_batch", "{labelled: 2, unlabelled: 2}"]

    def trained(name: str, *words: object) -> Path:
        assert main(fit_words("phantom_2d.yaml", tiny_stores, tmp_path / name, *batch, *words, epochs=1)) == 0
        return tmp_path / name

    one = trained("one", "--data.transforms", own)
    assert "my_transforms.Shift" in (one / "config.yaml").read_text()
    assert_same_training(one, trained("workers", "--data.transforms", own, "--data.workers", 2))
    with pytest.raises(AssertionError):
        assert_same_training(one, trained("plain"))


def test_nothing_private_of_torchio_is_used() -> None:
    private = re.compile(r"_fill\b|_get_next_subject|_get_subjects_iterable|_num_sampled|tio\._|torchio\._")
    for file in DATA.glob("*.py"):
        assert not private.search(file.read_text()), file


def test_no_queue_claims_to_have_no_end(store):
    data = module(store, workers=0)
    loader = data.train_dataloader().iterables["labelled"]
    next(iter(loader))
    assert len(loader._loader) == len(loader) == 3
