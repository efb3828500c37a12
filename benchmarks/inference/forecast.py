"""The peak of resident memory: estimated and measured, for scans of several sizes, each in a process of its own.

    python benchmarks/inference/forecast.py OUT [--only N]

Synthetic scans (noise in a body-sized ellipse), 14 classes, a small network on windows of 32×96×96. The forecast is the
one that ``flarecps segment --max-ram`` prints before it starts; measured is the process's highest resident memory, all
libraries and the scan included, from its start to the written file. OUT/forecast.json and .md are written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

SIZES = {  # slices, rows, columns; spacing in mm; the network's spacing
    "small": ((60, 192, 192), (3.0, 1.6, 1.6), (3.0, 2.0, 2.0)),
    "thick slices": ((48, 512, 512), (5.0, 0.8, 0.8), (5.0, 1.2, 1.2)),
    "abdomen": ((120, 512, 512), (2.0, 0.75, 0.75), (2.0, 1.5, 1.5)),
    "fine network": ((120, 384, 384), (2.0, 1.0, 1.0), (1.5, 0.8, 0.8)),
    "coarse network": ((240, 512, 512), (1.5, 0.8, 0.8), (3.0, 3.0, 3.0)),
    "trunk": ((400, 512, 512), (1.25, 0.8, 0.8), (2.0, 1.5, 1.5)),
    "float": ((160, 400, 400), (2.0, 0.9, 0.9), (2.0, 1.6, 1.6)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--one", help="measure this size here and print a line of JSON")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.one is not None:
        print(json.dumps(measured(options.one, options.out)))
        return
    rows = []
    for name in SIZES:
        words = [sys.executable, __file__, str(options.out), "--one", name]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(
            f"{name}: estimated {rows[-1]['estimated_mb']:.0f} MB, measured {rows[-1]['measured_mb']:.0f} MB",
            flush=True,
        )
    (options.out / "forecast.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    lines = [
        "| scan | voxels | network's grid | estimated, MB | measured, MB | estimated / measured |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['name']} | {times(row['scan_voxels'])} | {times(row['network_voxels'])} | {row['estimated_mb']:.0f} "
        f"| {row['measured_mb']:.0f} | {row['ratio']:.2f} |"
        for row in rows
    ]
    (options.out / "forecast.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def times(shape: list[int]) -> str:
    return "×".join(str(edge) for edge in shape)


def measured(name: str, out: Path) -> dict[str, object]:
    """One scan from file to file, in this process."""
    import resource

    from synthetic import small_model

    from flarecps.inference.resources.budget import Budget
    from flarecps.inference.segmenter import Segmenter
    from flarecps.preprocessing.case import network_shape
    from flarecps.volumes.io import read_volume, write_labels

    shape, spacing_mm, network_mm = SIZES[name]
    path = out / f"{name.replace(' ', '_')}.nii"
    if not path.exists():  # in a process of its own: what made the scan does not count
        subprocess.run([sys.executable, "-c", WRITE.format(here=str(Path(__file__).parent), path=str(path), shape=shape,
                        spacing_mm=spacing_mm, floating=name == "float")], check=True)  # fmt: skip
    plan, network = small_model(network_mm)
    said: list[str] = []
    segmenter = Segmenter(plan, [network], say=said.append, device="cpu", budget=Budget(ram_bytes=2**40))
    volume = read_volume(path)
    _, estimated = segmenter.estimate(volume)
    labels = segmenter(volume)
    write_labels(out / "labels.nii.gz", labels, volume.source)
    path.unlink()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "name": name,
        "scan_voxels": shape,
        "network_voxels": network_shape(volume.space.shape, volume.space.spacing_mm, plan),
        "estimated_mb": estimated.ram.peak / 2**20,
        "measured_mb": peak / 2**20,
        "ratio": estimated.ram.peak / peak,
        "phases_mb": {key: value / 2**20 for key, value in asdict(estimated.ram).items()},
        "said": said,
    }


WRITE = """
import sys
sys.path.insert(0, {here!r})
from synthetic import write_scan
write_scan({path!r}, {shape!r}, {spacing_mm!r}, floating={floating!r})
"""

if __name__ == "__main__":
    main()
