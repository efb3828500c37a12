"""One scan from its file to its label file by flarecps, one line of JSON; for compare_nnunet.py.

python ours.py FOLDER SCAN RESULT.nii.gz STEP MIRROR(0|1)
"""

from __future__ import annotations

import sys
from pathlib import Path

from measure import Laps, one_thread, report

one_thread()

import torch  # noqa: E402  # after one_thread

from flarecps.inference import segmenter as module  # noqa: E402
from flarecps.volumes.io import read_volume, write_labels  # noqa: E402


def main() -> None:
    folder, scan, result, step, mirror = sys.argv[1:]
    torch.set_num_threads(1)
    laps = Laps()

    def whole() -> None:
        segmenter = module.Segmenter.load(
            Path(folder) / "ours.ckpt",
            step=float(step),
            mirror_axes="all" if int(mirror) else (),
            accumulate="logits",
            device="cpu",
            batch=1,
        )
        for network in segmenter.networks:
            network.forward = laps.timed("network", network.forward)
        module.prepare_case = laps.timed("crop and resample", module.prepare_case)
        volume = laps.timed("read", read_volume)(scan)
        labels = segmenter(volume)
        laps.timed("write", write_labels)(Path(result), labels, volume.source)

    report(whole, laps)


if __name__ == "__main__":
    main()
