"""nnU-Net v2's own resampling of label maps, for labels.py: runs in the peer's environment.

    python peer_labels.py FOLDER

FOLDER/jobs.json lists jobs: an array file in, an array file out, the new shape, the present and the target spacing.
"""

import json
import sys
from pathlib import Path

import numpy as np
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

folder = Path(sys.argv[1])
for job in json.loads((folder / "jobs.json").read_text()):
    labels = np.load(folder / job["labels"]).astype(np.int16)
    resampled = resample_data_or_seg_to_shape(
        labels[None], job["shape"], job["spacing_mm"], job["target_mm"], is_seg=True, order=1, order_z=0,
        force_separate_z=None,
    )  # fmt: skip
    np.save(folder / job["out"], resampled[0].astype(np.uint8))
    print(job["out"], flush=True)
