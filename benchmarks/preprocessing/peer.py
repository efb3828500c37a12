"""One scan with labels through nnU-Net v2's DefaultPreprocessor.run_case_save; for speed.py, in the peer's environment.

python peer.py SCAN LABELS PLANS.json OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from measure import measured, one_core, timed

one_core()

import torch  # noqa: E402  # after one_core
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor  # noqa: E402
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2  # noqa: E402
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: E402

torch.set_num_threads(1)


def main() -> None:
    scan, labels, plans_path, out = sys.argv[1:]
    content = json.loads(Path(plans_path).read_text())
    plans = PlansManager(content["plans"])
    configuration = plans.get_configuration("3d_fullres")
    reader = plans.image_reader_writer_class
    Path(out).mkdir(parents=True, exist_ok=True)
    preprocessor = DefaultPreprocessor(verbose=False)
    laps: dict[str, float] = {}
    timed(reader, "read_images", laps, "read scan")
    # read_seg calls read_images: its seconds are within "read scan"
    timed(DefaultPreprocessor, "run_case_npy", laps, "crop and resample")
    timed(nnUNetDatasetBlosc2, "save_case", laps, "compress and write")
    words = (str(Path(out) / "scan"), [scan], labels, plans, configuration, content["dataset"])
    measured(lambda: preprocessor.run_case_save(*words), laps)


if __name__ == "__main__":
    main()
