"""One scan from its file to its label file by nnU-Net v2's own predictor, one line of JSON; runs in the peers' Python.

python peer.py FOLDER SCAN RESULT.nii.gz STEP MIRROR(0|1)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from measure import Laps, one_thread, report

one_thread()

import torch  # noqa: E402  # after one_thread
from nnunetv2.inference.export_prediction import export_prediction_from_logits  # noqa: E402
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans  # noqa: E402
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: E402


def main() -> None:
    folder, scan, result, step, mirror = sys.argv[1:]
    torch.set_num_threads(1)
    laps = Laps()

    def whole() -> None:
        plans = PlansManager(json.loads((Path(folder) / "plans.json").read_text()))
        configuration = plans.get_configuration("3d_fullres")
        dataset = json.loads((Path(folder) / "dataset.json").read_text())
        network = get_network_from_plans(
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
            1,
            len(dataset["labels"]),
            allow_init=True,
            deep_supervision=False,
        )
        state = torch.load(Path(folder) / "nnunet.pth", map_location="cpu", weights_only=True)
        network.load_state_dict(state)
        network.eval()
        network.forward = laps.timed("network", network.forward)
        predictor = nnUNetPredictor(
            tile_step_size=float(step), use_mirroring=bool(int(mirror)), device=torch.device("cpu"), allow_tqdm=False
        )
        predictor.manual_initialization(network, plans, configuration, [state], dataset, "flarecps", (0, 1, 2))
        preprocessor = configuration.preprocessor_class(verbose=False)
        run_case = laps.timed("read, crop and resample", preprocessor.run_case)
        data, _, properties = run_case([scan], None, plans, configuration, dataset)
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
        export = laps.timed("export and write", export_prediction_from_logits)
        stem = result.removesuffix(".nii.gz")
        export(logits, properties, configuration, plans, dataset, stem, num_threads_torch=1)

    report(whole, laps)


if __name__ == "__main__":
    main()
