#!/usr/bin/env python3
"""Runs models in ONNX Runtime for `kernelsmith fuzz-graphs --ort`.

Each line of standard input is DIR<TAB>COUNT: DIR/model.onnx runs on DIR/in_0.npy ... and its outputs go to
DIR/out_0.npy ... The answer is one line: `ok`, or what went wrong.
"""
import sys

import numpy as np
import onnxruntime as ort


def main() -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    # The model as it stands: rewrites of the runtime are its own matter. The basic ones drop an Expand to
    # no elements, for example.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for line in sys.stdin:
        folder, count = line.rstrip("\n").split("\t")
        try:
            session = ort.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
            names = [i.name for i in session.get_inputs()]
            arrays = [np.load(f"{folder}/in_{i}.npy") for i in range(int(count))]
            outputs = session.run(None, dict(zip(names, arrays)))
            for i, out in enumerate(outputs):
                # ascontiguousarray makes vectors of scalars
                np.save(f"{folder}/out_{i}.npy", np.require(out, requirements="C"))
            print("ok", flush=True)
        except Exception as e:  # whatever the runtime raises is an answer
            print(" ".join(str(e).split())[:300] or "error", flush=True)


if __name__ == "__main__":
    main()
