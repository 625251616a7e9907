"""A deployer without topkast and without torch: the file runs in plain ONNX Runtime, and with the library beside it.

    python deploy.py FOLDER

FOLDER is what finetune.py wrote for deployment: model.onnx, topkast's library, and an example with its result.
"""

import importlib.util
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime


def seconds(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> float:
    """The shortest of 20 runs."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - start)
    return min(times)


def main(folder: Path) -> None:
    assert not any(map(importlib.util.find_spec, ("topkast", "torch", "onnx"))), "this is no bare environment"
    (library,) = folder.glob("libtopkast.*")
    with np.load(folder / "example.npz") as example:
        given, wanted = example["given"], example["wanted"]
    for name in ("plain ONNX Runtime", "with the library"):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        if name == "with the library":
            options.register_custom_ops_library(str(library))
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        for count in (1, len(given)):  # the number of sequences is free
            feeds = {session.get_inputs()[0].name: given[:count]}
            np.testing.assert_allclose(session.run(None, feeds)[0], wanted[:count], rtol=1e-4, atol=1e-4)
        print(f"{name}: {1e3 * seconds(session, feeds):.2f} ms")
    print("the results are those of training")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
