#!/usr/bin/env python3
"""Train a four-neuron network on XOR and export it to ONNX.

    pip install numpy onnx
    python examples/xor/train.py

    x [batch, 2] -> Gemm 4 -> Tanh -> Gemm 1 -> Sigmoid -> y [batch, 1]

Written next to this script: xor.onnx, samples.npz (the four corners, under the name of the
model's input) and expected.npy (what the trained network answers for them).
"""
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
Y = np.array([[0], [1], [1], [0]], np.float32)


def forward(p, x):
    hidden = np.tanh(x @ p["w1"].T + p["b1"])
    return 1 / (1 + np.exp(-(hidden @ p["w2"].T + p["b2"]))), hidden


def train(steps=4000, rate=0.5):
    """Plain gradient descent on the cross entropy."""
    rng = np.random.default_rng(3)
    p = {
        "w1": rng.standard_normal((4, 2)).astype(np.float32), "b1": np.zeros(4, np.float32),
        "w2": rng.standard_normal((1, 4)).astype(np.float32), "b2": np.zeros(1, np.float32),
    }
    for _ in range(steps):
        y, hidden = forward(p, X)
        d = (y - Y) / len(X)
        dh = (d @ p["w2"]) * (1 - hidden**2)
        for k, g in {"w2": d.T @ hidden, "b2": d.sum(0), "w1": dh.T @ X, "b1": dh.sum(0)}.items():
            p[k] -= (rate * g).astype(np.float32)
    return p


def to_onnx(p):
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "fc1", transB=1),
        helper.make_node("Tanh", ["h"], ["t"], "tanh"),
        helper.make_node("Gemm", ["t", "w2", "b2"], ["z"], "fc2", transB=1),
        helper.make_node("Sigmoid", ["z"], ["y"], "sigmoid"),
    ]
    graph = helper.make_graph(
        nodes, "xor",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(v, k) for k, v in p.items()],
    )
    model = helper.make_model(
        graph, producer_name="kernelsmith-examples", ir_version=7,
        opset_imports=[helper.make_opsetid("", 13)],
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main():
    p = train()
    y = forward(p, X)[0]
    for (a, b), got in zip(X, y[:, 0]):
        print(f"{a:.0f} xor {b:.0f} = {got:.4f}")
    assert (np.abs(y - Y) < 0.05).all(), "not trained"
    onnx.save_model(to_onnx(p), str(HERE / "xor.onnx"))
    np.savez(HERE / "samples.npz", x=X)
    np.save(HERE / "expected.npy", y.astype(np.float32))


if __name__ == "__main__":
    main()
