"""Self-training: teachers label, a person strikes out, patches are drawn, a student learns; and it all goes on."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from stores import TinyStores, fit, fit_words
from tiny_training import CLIP, DECAY, LR, MOMENTUM, batches, module_of, trained

from flarecps.checkpoint import read_checkpoint
from flarecps.cli.main import main
from flarecps.data.datamodule import ScanDataModule
from flarecps.datasets.catalogue import read_catalogue
from flarecps.errors import ConfigError, StoreError
from flarecps.inference.postprocessing import largest_component
from flarecps.inference.pseudo_labels import quality_of
from flarecps.inference.sliding_window import predict_probabilities
from flarecps.methods import SelfTraining
from flarecps.planning.fingerprint import fingerprint_dataset
from flarecps.planning.planner import plan_dataset
from flarecps.preprocessing.dataset import preprocess_dataset
from flarecps.preprocessing.pseudo_labels import (
    PseudoLabelledStore,
    prepare_folder,
    read_all,
    read_pseudo_labels,
    write_pseudo_labels,
)
from flarecps.preprocessing.store import CaseStore
from flarecps.preprocessing.store_writing import find_damage

BATCH = "{labelled: 2, pseudo_labelled: 2}"
STUDENT = ("--model.method", "flarecps.methods.SelfTraining", "--data.global_batch", BATCH)
CONTROL = "phantom_3d_supervised.yaml"


# -- the step, from its formulas


def pseudo_batches(count: int = 2, patches: int = 2) -> list[dict[str, Any]]:
    """Noise with true labels, and noise with pseudo-labels of which some classes are left out."""
    true, pseudo = batches(3, count, patches), batches(3, count, patches, partial=True)
    for number, (one, other) in enumerate(zip(true, pseudo, strict=True)):
        generator = torch.Generator().manual_seed(90 + number)
        image = torch.randn(one["labelled"]["image"].shape, generator=generator).double()
        one["pseudo_labelled"] = other["labelled"] | {"image": image}
        one["pseudo_labelled"]["labels"] = other["labelled"]["labels"].flip(-1)
        del one["unlabelled"]
    return true


def plain_loss(logits: torch.Tensor, labels: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Cross-entropy − mean Dice over the batch; what is not ``known`` in a patch is background there."""
    y = torch.nn.functional.one_hot(labels.long(), 3).double().movedim(-1, 1).flatten(2)
    p = logits.softmax(1).flatten(2)
    k = known.double()[:, :, None]
    p = torch.cat([p[:, :1] + (p * (1 - k)).sum(1, keepdim=True), (p * k)[:, 1:]], 1)
    entropy = -(p * y).sum(1).log().mean()
    dice = (2 * (p * y).sum((0, 2)) + 1e-5) / ((p + y).sum((0, 2)) + 1e-5)
    there = known.any(0)
    return entropy - dice[1:][there[1:]].mean()


@pytest.mark.parametrize("mu", [1.0, 0.3])
def test_two_steps_against_the_formulas_in_double_precision(mu: float, tmp_path: Path) -> None:
    data = pseudo_batches()
    module = module_of(3, method=SelfTraining(mu=mu)).double()
    (reference,) = [module_of(3, method=SelfTraining()).double().siblings[0]]
    reference.load_state_dict(module.siblings[0].state_dict())
    velocity = [torch.zeros_like(parameter) for parameter in reference.parameters()]
    for batch in data:
        total = torch.zeros((), dtype=torch.float64)
        for stream, factor in (("labelled", 1.0), ("pseudo_labelled", mu)):
            part = batch[stream]
            for weight, logits in zip((2 / 3, 1 / 3), reference(part["image"]), strict=False):
                labels = torch.nn.functional.interpolate(
                    part["labels"].double(), size=logits.shape[2:], mode="nearest-exact"
                )
                total = total + factor * weight * plain_loss(logits, labels[:, 0], part["annotated"])
        parameters = list(reference.parameters())
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        with torch.no_grad():
            for index, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                step = gradient * min(1.0, CLIP / (norm.item() + 1e-6)) + DECAY * parameter
                velocity[index] = MOMENTUM * velocity[index] + step
                parameter -= LR * (step + MOMENTUM * velocity[index])
    trained(module, data, tmp_path)
    for name, value in module.siblings[0].state_dict().items():
        torch.testing.assert_close(value, reference.state_dict()[name], rtol=1e-9, atol=1e-11)


def test_two_ranks_take_the_step_of_one(tmp_path: Path) -> None:
    data, found = pseudo_batches(patches=4), []
    for ranks in (1, 2):
        module = module_of(3, method=SelfTraining()).double()
        trained(module, data, tmp_path, ranks=ranks)
        found.append(module.state_dict())
    for name, value in found[0].items():
        if isinstance(value, torch.Tensor) and value.is_floating_point() and name.startswith("siblings"):
            torch.testing.assert_close(value, found[1][name], rtol=1e-9, atol=1e-11)


def test_a_student_declares_its_cost_and_refuses_nonsense() -> None:
    method = SelfTraining(mu=0.5)
    assert (method.sibling_count, method.extra_networks, method.streams) == (1, 0.0, ("labelled", "pseudo_labelled"))
    assert method.weight(0) == method.weight(99) == 0.5
    with pytest.raises(ConfigError, match=r"mu is 0\.0"):
        SelfTraining(mu=0.0)
    (batch,) = batches(3, count=1)
    with pytest.raises(ConfigError, match=r"pseudo_labelled patches.*data\.pseudo_labels"):
        module_of(3, method=SelfTraining()).training_step(batch, 0)


# -- the stream of patches


def made_up(store: Path, folder: Path, qualities: dict[str, dict[str, float | None]]) -> Path:
    """Pseudo-labels that say of each case: organ 1 in its first half of slices, organ 2 in its second."""
    cases = CaseStore(store)
    prepare_folder(folder, {"preprocessing_hash": cases.plan.preprocessing_hash()})
    organs = [name for name, label in cases.plan.labels.items() if label]
    for name, said in qualities.items():
        labels = np.zeros(cases.record(name).shape, np.uint8)
        labels[: len(labels) // 2, :5, :5] = 1
        labels[len(labels) // 2 :, -5:, -5:] = 2
        quality = dict.fromkeys(organs) | said
        write_pseudo_labels(folder, name, labels, None, 3, quality, dict.fromkeys(organs, 1.0))
    return folder


@pytest.fixture(scope="module")
def pool(tiny_stores: TinyStores) -> tuple[str, ...]:
    roles = json.loads((tiny_stores.three / "store.json").read_text())["roles"]
    return tuple(roles["unlabelled"])


@pytest.fixture(scope="module")
def organs(tiny_stores: TinyStores) -> list[str]:
    return [name for name, label in CaseStore(tiny_stores.three).plan.labels.items() if label]


def drawn(data: ScanDataModule, epochs: int) -> list[dict[str, Any]]:
    loader, found = data.train_dataloader(), []
    for epoch in range(epochs):
        data.clock.set(epoch)
        found += [batch for batch, _, _ in loader]
    data.teardown("fit")
    return found


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_the_third_stream_reads_pseudo_labels_and_leaves_the_others_alone(
    tiny_stores: TinyStores, pool: tuple[str, ...], organs: list[str], tmp_path: Path
) -> None:
    first, second, third = pool
    folder = made_up(
        tiny_stores.three,
        tmp_path / "pseudo",
        {
            first: {organs[0]: 0.9, organs[1]: 0.3},
            second: {organs[0]: 0.6, organs[1]: 0.6},
            third: {organs[0]: 0.9, organs[1]: 0.9},
        },
    )
    (folder / "struck.csv").write_text(f"case,organ\n{second},{organs[0]}\n{third}\n")
    settings: dict[str, Any] = {"iterations_per_epoch": 40, "seed": 3, "patch_voxels": [4, 4, 4], "augmentation": False}
    settings |= {"foreground_share": 0.5}
    batch = {"labelled": 2, "unlabelled": 2}
    plain = drawn(ScanDataModule(str(tiny_stores.three), global_batch=batch, **settings), 1)
    data = ScanDataModule(
        str(tiny_stores.three),
        global_batch={**batch, "pseudo_labelled": 4},
        pseudo_labels=str(folder),
        min_quality=0.5,
        **settings,
    )
    found = drawn(data, 1)
    assert len(found) == 40
    for one, other in zip(plain, found, strict=True):
        assert equal(one, {stream: other[stream] for stream in one})
    for workers, ranks in ((3, 1), (0, 2)):
        again = ScanDataModule(
            str(tiny_stores.three),
            global_batch={**batch, "pseudo_labelled": 4},
            pseudo_labels=str(folder),
            min_quality=0.5,
            workers=workers,
            **settings,
        )
        type(again).ranks, before = property(lambda self, ranks=ranks: ranks), type(again).ranks
        try:
            others = drawn(again, 1)
        finally:
            type(again).ranks = before
        for one, other in zip(found, others, strict=True):
            mine = one["pseudo_labelled"]
            rows = {name: value[::ranks] for name, value in mine.items()}
            assert equal(rows, other["pseudo_labelled"])
    seen: Counter[str] = Counter()
    store = CaseStore(tiny_stores.three)
    for one in (one["pseudo_labelled"] for one in found):
        for row, name in enumerate(one["case"]):
            seen[name] += 1
            known = {index for index, flag in enumerate(one["annotated"][row].tolist()) if flag}
            left_out = {first: {2}, second: {1}}[name]
            assert known == set(range(len(organs) + 1)) - left_out
            where = tuple(one["location"][row].tolist())
            image, _ = store.read_patch(name, where, (4, 4, 4), labels=False)
            assert torch.equal(one["image"][row], torch.from_numpy(image)), "the image is the store's"
            labels = one["labels"][row, 0]
            assert not set(labels.unique().tolist()) & left_out
            if one["index"][row] % 4 >= 2:  # forced: centred on the organ that is left
                assert labels[2, 2, 2] == (1 if name == first else 2)
    assert set(seen) == {first, second}
    assert seen[first] / seen[second] == pytest.approx(0.9 / 0.6, rel=0.35)


def test_left_and_right_are_exchanged_with_what_is_left_out(
    tiny_stores: TinyStores, pool: tuple[str, ...], tmp_path: Path
) -> None:
    """A right kidney that is struck out is, in a mirrored patch, a left one, and the other is then the right one."""
    store = CaseStore(tiny_stores.three)
    right, left = store.plan.labels["right kidney"], store.plan.labels["left kidney"]
    folder = tmp_path / "pseudo"
    prepare_folder(folder, {"preprocessing_hash": store.plan.preprocessing_hash()})
    names = [name for name, label in store.plan.labels.items() if label]
    labels = np.full(store.record(pool[0]).shape, left, np.uint8)
    labels[::2] = right
    write_pseudo_labels(folder, pool[0], labels, None, 3, dict.fromkeys(names), dict.fromkeys(names, 1.0))
    (folder / "struck.csv").write_text(f"{pool[0]},right kidney\n")
    data = ScanDataModule(
        str(tiny_stores.three),
        max_unlabelled=1,
        unlabelled=False,
        pseudo_labels=str(folder),
        global_batch={"labelled": 2, "pseudo_labelled": 8},
        mirror_axes=[2],
        swap_left_right=True,
        iterations_per_epoch=3,
        patch_voxels=[4, 4, 4],
    )
    seen: Counter[int] = Counter()
    for one in (one["pseudo_labelled"] for one in drawn(data, 1)):
        for known, drawing in zip(one["annotated"].tolist(), one["labels"], strict=True):
            (kept,) = {right, left} & {index for index, flag in enumerate(known) if flag}
            assert set(drawing.unique().tolist()) == {0, kept}
            seen[kept] += 1
    assert min(seen[right], seen[left]) > 4


def test_scans_are_drawn_as_often_as_they_are_good(
    tiny_stores: TinyStores, pool: tuple[str, ...], organs: list[str], tmp_path: Path
) -> None:
    said = {name: {organs[0]: quality} for name, quality in zip(pool, (1.0, 0.25, None), strict=True)}
    folder = made_up(tiny_stores.three, tmp_path / "pseudo", said)
    expected = dict(zip(pool, (1.0, 0.25, 1.0), strict=True))
    assert PseudoLabelledStore(tiny_stores.three, folder, pool).weights == expected
    for weighted, shares in ((True, (4 / 9, 1 / 9, 4 / 9)), (False, (1 / 3,) * 3)):
        data = ScanDataModule(
            str(tiny_stores.three),
            unlabelled=False,
            pseudo_labels=str(folder),
            quality_weights=weighted,
            global_batch={"labelled": 2, "pseudo_labelled": 10},
            patch_voxels=[2, 2, 2],
            augmentation=False,
            iterations_per_epoch=90,
        )
        seen = Counter(name for one in drawn(data, 1) for name in one["pseudo_labelled"]["case"])
        for name, share in zip(pool, shares, strict=True):
            assert seen[name] / 900 == pytest.approx(share, abs=0.05)


def test_what_is_left_out_and_what_is_refused(
    tiny_stores: TinyStores, pool: tuple[str, ...], organs: list[str], tmp_path: Path
) -> None:
    first, second, third = pool
    zero: dict[str, float | None] = dict.fromkeys(organs, 0.0)
    folder = made_up(tiny_stores.three, tmp_path / "pseudo", {first: dict.fromkeys(organs, 0.9), second: zero})

    def store(**settings: Any) -> PseudoLabelledStore:
        return PseudoLabelledStore(tiny_stores.three, folder, pool, **settings)

    with pytest.raises(StoreError, match=f"1 unlabelled case of 3 without .*\\({third}\\).*strike them out"):
        store()
    (folder / "struck.csv").write_text(f"\ufeffcase,organ\n\n {third} ,\n", encoding="utf-8")
    assert store().names == (first,), "a quality of 0 teaches nothing"
    (folder / "struck.csv").write_text(f"case;organ\n{third};\n", encoding="utf-16")  # as Excel saves it
    assert store().names == (first,)
    assert PseudoLabelledStore(tiny_stores.three, folder, pool[:1]).names == (first,)
    every = "".join(f"{first},{organ}\n" for organ in organs)
    for text, words in (
        (f"{third}\n{first}\n", "no pseudo-labelled case is left of 3"),
        (f"{third}\n{every}", "no pseudo-labelled case is left of 3"),
        (f"{third}\nnobody\n", "line 2 is 'nobody'"),
        (f"{third},kidneys\n", "line 1 .*expected CASE, or CASE,ORGAN"),
        (f"{third},{organs[0]},{organs[1]}\n", "line 1"),
        (f"{third};kidneys\n", "line 1"),
    ):
        (folder / "struck.csv").write_text(text)
        with pytest.raises(StoreError, match=words):
            store()
    (folder / "struck.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StoreError, match="UTF-8"):
        store()
    (folder / "struck.csv").unlink()
    made_up(tiny_stores.three, folder, {third: dict.fromkeys(organs, 0.8)})
    whole = store()
    assert whole.names == (first, third)
    with pytest.raises(StoreError, match=r"below data\.min_quality \(0\.95\)"):
        store(min_quality=0.95)
    with pytest.raises(StoreError, match="another grid"):
        PseudoLabelledStore(tiny_stores.two, folder, pool)
    with pytest.raises(StoreError, match="holds no pseudo-labels"):
        PseudoLabelledStore(tiny_stores.three, tmp_path / "nowhere", pool)
    with pytest.raises(ConfigError, match="min_quality is 70"):
        ScanDataModule(str(tiny_stores.three), pseudo_labels=str(folder), min_quality=70)
    with pytest.raises(ConfigError, match="pseudo_labelled: n"):
        ScanDataModule(str(tiny_stores.three), pseudo_labels=str(folder), global_batch={"pseudo_labelled": 2})
    batch = {"labelled": 3, "unlabelled": 4}
    for unlabelled, expected in ((True, batch), (False, batch | {"unlabelled": 0})):
        data = ScanDataModule(
            str(tiny_stores.three), pseudo_labels=str(folder), unlabelled=unlabelled, global_batch=batch
        )
        assert data.global_batch == expected | {"pseudo_labelled": 4}
    digest = whole.digest
    (folder / "struck.csv").write_text(f"{third},{organs[1]}\n")
    assert store().digest != digest


# -- the command


@pytest.fixture(scope="module")
def teachers(tiny_stores: TinyStores, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two controls from the same weights, whose patches differ: they agree in part."""
    folder = tmp_path_factory.mktemp("teachers")
    runs = [fit(CONTROL, tiny_stores, folder / str(seed), "--data.seed", seed, epochs=3) for seed in range(2)]
    return [run / "checkpoints" / "last.ckpt" for run in runs]


def pseudo_label(teachers: list[Path], *words: object) -> int:
    return main(["pseudo-label", *map(str, (*teachers, *words)), "--no-progress"])


@pytest.fixture(scope="module")
def labelled(tiny_stores: TinyStores, teachers: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pseudo") / "labels"
    assert pseudo_label(teachers, tiny_stores.three, folder, "--largest", "all") == 0
    return folder


def test_labels_and_quality_are_what_the_teachers_say(
    tiny_stores: TinyStores, teachers: list[Path], labelled: Path, pool: tuple[str, ...]
) -> None:
    store = CaseStore(tiny_stores.three)
    networks = [read_checkpoint(path).siblings[0] for path in teachers]
    assert [one.name for one in read_all(labelled)] == sorted(pool)
    qualities = {}
    for name in pool:
        image, _ = store.read_case(name)
        scores = [
            predict_probabilities(one, torch.from_numpy(image), store.plan.patch_voxels, store.plan.class_count)
            for one in networks
        ]
        maps = [one.argmax(0).numpy() for one in (sum(scores), *scores)]
        for one in maps:
            for organ in range(1, store.plan.class_count):
                one[(one == organ) & ~largest_component(one == organ)] = 0
        found = read_pseudo_labels(labelled, name)
        assert find_damage(found.folder) == ""
        labels, disputed = found.maps()
        assert (labels == maps[0]).mean() > 0.9999
        assert disputed is not None
        assert (disputed == (maps[1] != maps[2])).mean() > 0.9999
        for organ, label in store.plan.labels.items():
            if label:
                one, other = maps[1] == label, maps[2] == label
                total = int(one.sum() + other.sum())
                dice = 2 * int((one & other).sum()) / total if total else None
                assert found.quality[organ] == (None if dice is None else pytest.approx(dice, abs=2e-3))
                voxels = int((labels == label).sum())
                assert found.ml[organ] == pytest.approx(voxels * np.prod(store.plan.spacing_mm) / 1000, abs=1e-3)
        there = [one for one in found.quality.values() if one is not None]
        qualities[name] = np.mean(there) if there else -1.0
    assert any(0 < one < 1 for one in qualities.values()), "teachers that agree in part"
    with open(labelled / "quality.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == sorted(pool, key=lambda name: (qualities[name], name))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    page = (labelled / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == len(pool)
    places = [page.index(f"<h3>{row['case']}</h3>") for row in rows]
    assert places == sorted(places)


def test_quality_of_three_teachers_and_of_one() -> None:
    """Pairs: {1, 2} ½ = 2·1/(2 + 2), {1, 3} and {2, 3} 0: one of each pair has no liver."""
    maps = [np.array([[row]], np.uint8) for row in ([1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 3])]
    names = {"background": 0, "liver": 1, "spleen": 2, "aorta": 3}
    assert quality_of(maps, names) == {"liver": round(0.5 / 3, 6), "spleen": None, "aorta": 0.0}
    assert quality_of(maps[:1], names) == {"liver": None, "spleen": None, "aorta": None}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted((folder / "cases").rglob("*.*"))}


def test_shards_workers_and_a_bad_case(
    tiny_stores: TinyStores, teachers: list[Path], labelled: Path, pool: tuple[str, ...], tmp_path: Path, capsys: Any
) -> None:
    """However it is divided there are the same bytes; a case that can't be read is named and the others are done."""
    for share in ("1/2", "2/2"):
        words = ("--largest", "all", "--shard", share)
        assert pseudo_label(teachers, tiny_stores.three, tmp_path / "shards", *words) == 0
    assert files_of(tmp_path / "shards") == files_of(labelled)
    for name in ("quality.csv", "struck.csv", "pseudo_labels.json"):
        assert (tmp_path / "shards" / name).read_bytes() == (labelled / name).read_bytes()

    store, out = tmp_path / "store", tmp_path / "whole"
    shutil.copytree(tiny_stores.three, store)
    image = store / "cases" / pool[1] / "image.b2nd"
    whole = image.read_bytes()
    image.write_bytes(b"no array")
    capsys.readouterr()
    words = ("--largest", "all", "--workers", 2)
    assert pseudo_label(teachers, store, out, *words) == 1
    said = capsys.readouterr()
    assert f"not labelled: {pool[1]}: " in said.err
    assert "2 of 3 cases labelled" in said.out
    (out / "cases" / f".partial-0123abcd-{pool[1]}").mkdir()  # of a run that was killed
    image.write_bytes(whole)
    assert pseudo_label(teachers, store, out, *words) == 0
    assert "1 of 3 cases labelled; 2 were there already" in capsys.readouterr().out
    assert files_of(out) == files_of(labelled)
    assert not list((out / "cases").glob(".partial*"))


def test_a_person_strikes_out_and_annotates(
    tiny_stores: TinyStores, teachers: list[Path], labelled: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "labels"
    shutil.copytree(labelled, out)
    words = (tiny_stores.three, out, "--largest", "all", "--annotate-next", 2)
    assert pseudo_label(teachers, *words) == 0
    with open(out / "quality.csv", encoding="utf-8") as file:
        ranked = [row["case"] for row in csv.DictReader(file)]
    assert f"annotate next: {ranked[0]}, {ranked[1]}\n" in capsys.readouterr().out
    (out / "struck.csv").write_text(f"case,organ\n{ranked[0]}\n{ranked[1]},liver\n")
    assert pseudo_label(teachers, *words) == 0
    assert f"annotate next: {ranked[1]}, {ranked[2]}\n" in capsys.readouterr().out
    with open(out / "quality.csv", encoding="utf-8") as file:
        assert [row["struck"] for row in csv.DictReader(file)] == ["all", "liver", ""]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "1 struck out" in page
    assert page.count("Struck out: ") == 2
    assert (out / "struck.csv").read_text() == f"case,organ\n{ranked[0]}\n{ranked[1]},liver\n", "it is the person's"


def test_mistakes_are_answered_in_a_line(
    tiny_stores: TinyStores, teachers: list[Path], labelled: Path, tmp_path: Path, capsys: Any
) -> None:
    three, out = tiny_stores.three, tmp_path / "out"
    (tmp_path / "file").touch()
    for words, said in (
        (((*teachers, tiny_stores.dataset, out)), "not a case store"),
        (((*teachers, tiny_stores.two, out)), "another grid"),
        (((*teachers, three, three)), "lies in the case store"),
        (((*teachers, three, tmp_path / "file")), "holds no pseudo-labels"),
        (((*teachers, three, labelled)), "holds pseudo-labels of another run (postprocessing "),
        (((teachers[0], three, labelled, "--largest", "all")), "holds pseudo-labels of another run (teachers "),
        (((teachers[0], three, out, "--annotate-next", 1)), "quality needs two or more networks"),
        (((*teachers, three, out, "--annotate-next", 0)), "at least 1 scan"),
        (((*teachers, three, out, "--largest", "heart")), "no organ 'heart'"),
        (((*teachers, three, out, "--largest", "all", "--postprocess", "auto")), "name one of the two"),
        (((*teachers, three, out, "--postprocess", "auto")), "postprocessing.json: no such file"),
        (((*teachers, three, out, "--split", "other")), "no split 'other'"),
        (((*teachers, three, out, "--shard", "3/2")), "shard '3/2'"),
        (((three / "plan.json", three, out)), "not a checkpoint"),
    ):
        assert main(["pseudo-label", *map(str, words)]) == 2, said
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
        assert not out.exists() or not list((out / "cases").iterdir())


# -- a student on a grid of its own


@pytest.fixture(scope="module")
def coarser(tiny_stores: TinyStores, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same scans for a student: larger voxels, and its axes in another order than the teachers'."""
    catalogue = read_catalogue(tiny_stores.dataset)
    fingerprint, _ = fingerprint_dataset(catalogue, workers=1, progress=False)
    plan = plan_dataset(
        fingerprint, catalogue, spacing_mm=(22.0, 19.0, 13.0), patch_voxels=(16, 16, 8), order=(1, 0, 2)
    )
    store = tmp_path_factory.mktemp("coarser") / "store"
    assert not any(one.failed for one in preprocess_dataset(catalogue, plan, store, workers=1, progress=False))
    return store


def test_labels_for_a_students_grid_are_scipys(
    tiny_stores: TinyStores, teachers: list[Path], coarser: Path, pool: tuple[str, ...], tmp_path: Path, capsys: Any
) -> None:
    """The mean of the probabilities, interpolated linearly to where the student's voxels are; then the highest."""
    words = (coarser, tmp_path / "labels", "--teacher-store", tiny_stores.three)
    assert pseudo_label(teachers, *words) == 0
    seen, store = CaseStore(tiny_stores.three), CaseStore(coarser)
    networks = [read_checkpoint(path).siblings[0] for path in teachers]
    for name in pool:
        image, _ = seen.read_case(name)
        mean = sum(
            predict_probabilities(one, torch.from_numpy(image), seen.plan.patch_voxels, seen.plan.class_count).double()
            for one in networks
        ).numpy()  # type: ignore[union-attr]
        shape = store.record(name).shape
        canonical = [shape[store.plan.axis_order.index(axis)] for axis in range(3)]
        assert seen.plan.axis_order == (0, 1, 2) != store.plan.axis_order
        places = [(np.arange(n) + 0.5) * mean.shape[1 + axis] / n - 0.5 for axis, n in enumerate(canonical)]
        at = np.meshgrid(*places, indexing="ij")
        scores = np.stack([map_coordinates(one, at, order=1, mode="nearest") for one in mean])
        scores = scores.transpose(0, *(1 + axis for axis in store.plan.axis_order))
        labels, _ = read_pseudo_labels(tmp_path / "labels", name).maps()
        assert labels.shape == shape
        sure = np.diff(np.sort(scores, 0)[-2:], axis=0)[0] > 1e-4
        assert sure.mean() > 0.99
        np.testing.assert_array_equal(labels[sure], scores.argmax(0)[sure])
    before = files_of(tmp_path / "labels")
    shutil.rmtree(tmp_path / "labels" / "cases" / pool[1])
    capsys.readouterr()
    assert pseudo_label(teachers, *words) == 0
    assert "1 of 3 cases labelled; 2 were there already" in capsys.readouterr().out
    assert files_of(tmp_path / "labels") == before
    student = (
        "--data.store",
        coarser,
        "--data.patch_voxels",
        "[16,16,16]",
        "--data.pseudo_labels",
        tmp_path / "labels",
    )
    run = fit(CONTROL, tiny_stores, tmp_path / "run", *STUDENT, *student, epochs=1)
    trained = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert trained.plan.spacing_mm == store.plan.spacing_mm


def test_teachers_and_a_store_that_do_not_fit(
    tiny_stores: TinyStores, teachers: list[Path], coarser: Path, pool: tuple[str, ...], tmp_path: Path, capsys: Any
) -> None:
    assert pseudo_label(teachers, coarser, tmp_path / "a") == 2
    assert "--teacher-store" in capsys.readouterr().err
    assert pseudo_label(teachers, tiny_stores.three, tmp_path / "b", "--teacher-store", coarser) == 2
    assert "another grid" in capsys.readouterr().err
    other = tmp_path / "other"
    shutil.copytree(tiny_stores.three, other)
    cases = other / "cases"
    (cases / pool[0]).rename(tmp_path / "aside")
    (cases / pool[1]).rename(cases / pool[0])
    (tmp_path / "aside").rename(cases / pool[1])
    assert pseudo_label(teachers, coarser, tmp_path / "c", "--teacher-store", other) == 1
    said = capsys.readouterr()
    assert "1 of 3 cases labelled" in said.out
    assert f"made of other files of '{pool[0]}'" in said.err


# -- a student


def state_of(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_student_learns_resumes_and_teaches(
    tiny_stores: TinyStores, labelled: Path, tmp_path: Path, capsys: Any
) -> None:
    pseudo = tmp_path / "labels"
    shutil.copytree(labelled, pseudo)
    words = (*STUDENT, "--data.pseudo_labels", pseudo)
    fit(CONTROL, tiny_stores, tmp_path / "whole", *words)
    fit(CONTROL, tiny_stores, tmp_path / "parts", *words, "--data.workers", 2, epochs=1)
    (pseudo / "struck.csv").write_text("case,organ\n" + read_all(pseudo)[0].name + ",liver\n")
    resumed = fit_words(CONTROL, tiny_stores, tmp_path / "parts", *words, "--ckpt_path", "last")
    assert main(resumed) == 2
    assert "pseudo-labels are not those that this training began with" in capsys.readouterr().err
    (pseudo / "struck.csv").unlink()
    assert main(resumed) == 0
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(equal(value, parts[name]) for name, value in whole.items())
    plain = fit(CONTROL, tiny_stores, tmp_path / "plain", "--data.global_batch", "{labelled: 2}")
    assert not all(equal(value, whole[name]) for name, value in state_of(plain).items() if "siblings" in name)

    student = tmp_path / "whole" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(student).plan.global_batch == {"labelled": 2, "unlabelled": 0, "pseudo_labelled": 2}
    assert pseudo_label([student], tiny_stores.three, tmp_path / "second round") == 0
    assert all(one.mean_quality is None for one in read_all(tmp_path / "second round"))
    tuned = ("--data.global_batch", "{labelled: 2}", "--init", student)
    fit(CONTROL, tiny_stores, tmp_path / "tuned", *tuned, epochs=1)
    assert main(["report", str(tmp_path / "whole"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "self-training, one network" in page
    assert "2 labelled and 0 unlabelled and 2 pseudo-labelled ones over all devices" in page
