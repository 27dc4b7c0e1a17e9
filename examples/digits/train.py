#!/usr/bin/env python3
"""Train the digit classifier of this folder and export it to ONNX.

    pip install numpy onnx scikit-learn
    python examples/digits/train.py

The data is scikit-learn's bundled set of 1797 scanned digits of 8x8 pixels, so nothing is
downloaded. A fifth of it is held back, chosen by a fixed seed, and never trained on. The network
is small enough for gradients written out by hand:

    images [batch, 1, 8, 8] -> Conv 16 -> Relu -> MaxPool -> Conv 32 -> Relu -> MaxPool
                            -> Flatten -> Gemm -> logits [batch, 10]

Written next to this script:

    digits.onnx      the trained network; its batch size is symbolic
    samples.npz      the held-back images, under the name of the model's input
    labels.npy       what they show
    expected.npy     the logits that the trained network gives for them
"""
import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

HERE = Path(__file__).resolve().parent
SEED = 7
HELD_BACK = 0.2
PIXEL_MAX = 16.0


# ---- data ----


def load():
    """((images, labels) to train on, (images, labels) held back), pixels in 0..1."""
    digits = load_digits()
    images = (digits.images / PIXEL_MAX).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(SEED).permutation(len(images))
    cut = int(len(images) * HELD_BACK)
    held, train = order[:cut], order[cut:]
    return (images[train], labels[train]), (images[held], labels[held])


def shifted(images, rng):
    """Each image moved by at most one pixel: cheap augmentation."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    dy, dx = rng.integers(0, 3, size=(2, len(images)))
    return np.stack([p[:, y : y + 8, x : x + 8] for p, y, x in zip(padded, dy, dx)])


# ---- layers: forward returns (result, what backward needs) ----


def conv3x3(x, w, b):
    """3x3 convolution, stride 1, padded by one pixel."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    n, c, h, wd = windows.shape[:4]
    cols = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * wd, c * 9)
    y = cols @ w.reshape(len(w), -1).T + b
    return y.reshape(n, h, wd, len(w)).transpose(0, 3, 1, 2), (x.shape, cols)


def conv3x3_back(dy, w, saved):
    (n, c, h, wd), cols = saved
    flat = dy.transpose(0, 2, 3, 1).reshape(n * h * wd, len(w))
    dw, db = (flat.T @ cols).reshape(w.shape), flat.sum(0)
    dcols = (flat @ w.reshape(len(w), -1)).reshape(n, h, wd, c, 3, 3)
    padded = np.zeros((n, c, h + 2, wd + 2), np.float32)
    for i in range(3):
        for j in range(3):
            padded[:, :, i : i + h, j : j + wd] += dcols[..., i, j].transpose(0, 3, 1, 2)
    return padded[:, :, 1:-1, 1:-1], dw, db


def relu_pool(x):
    """Relu, then the maximum of each 2x2 block."""
    n, c, h, w = x.shape
    blocks = np.maximum(x, 0).reshape(n, c, h // 2, 2, w // 2, 2)
    blocks = blocks.transpose(0, 1, 2, 4, 3, 5).reshape(n, c, h // 2, w // 2, 4)
    best = blocks.argmax(-1)
    return np.take_along_axis(blocks, best[..., None], -1)[..., 0], (x, best)


def relu_pool_back(dy, saved):
    x, best = saved
    n, c, h, w = x.shape
    blocks = np.zeros((n, c, h // 2, w // 2, 4), np.float32)
    np.put_along_axis(blocks, best[..., None], dy[..., None], -1)
    dx = blocks.reshape(n, c, h // 2, w // 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(x.shape)
    return dx * (x > 0)


# ---- network ----


def initial(rng):
    def he(*shape):
        fan_in = np.prod(shape[1:])
        return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    return {
        "conv1.weight": he(16, 1, 3, 3), "conv1.bias": np.zeros(16, np.float32),
        "conv2.weight": he(32, 16, 3, 3), "conv2.bias": np.zeros(32, np.float32),
        "fc.weight": he(10, 128), "fc.bias": np.zeros(10, np.float32),
    }


def forward(p, images):
    a, save1 = conv3x3(images, p["conv1.weight"], p["conv1.bias"])
    a, pool1 = relu_pool(a)
    a, save2 = conv3x3(a, p["conv2.weight"], p["conv2.bias"])
    a, pool2 = relu_pool(a)
    flat = a.reshape(len(a), -1)
    return flat @ p["fc.weight"].T + p["fc.bias"], (save1, pool1, save2, pool2, flat)


def gradients(p, images, labels):
    """(mean cross entropy, its gradient with respect to each parameter)"""
    logits, (save1, pool1, save2, pool2, flat) = forward(p, images)
    n = len(images)
    e = np.exp(logits - logits.max(1, keepdims=True))
    prob = e / e.sum(1, keepdims=True)
    loss = -np.log(prob[np.arange(n), labels] + 1e-12).mean()
    prob[np.arange(n), labels] -= 1
    d = prob / n
    g = {"fc.weight": d.T @ flat, "fc.bias": d.sum(0)}
    d = (d @ p["fc.weight"]).reshape(n, 32, 2, 2)
    d = relu_pool_back(d, pool2)
    d, g["conv2.weight"], g["conv2.bias"] = conv3x3_back(d, p["conv2.weight"], save2)
    d = relu_pool_back(d, pool1)
    _, g["conv1.weight"], g["conv1.bias"] = conv3x3_back(d, p["conv1.weight"], save1)
    return loss, g


def train(images, labels, epochs, batch=64, peak=4e-3):
    """Adam with a cosine-shaped learning rate."""
    rng = np.random.default_rng(SEED)
    p = initial(rng)
    m = {k: np.zeros_like(v) for k, v in p.items()}
    v = {k: np.zeros_like(v) for k, v in p.items()}
    steps, t = epochs * (len(images) // batch), 0
    for epoch in range(epochs):
        order = rng.permutation(len(images))
        total = 0.0
        for at in range(0, len(order) - batch + 1, batch):
            take = order[at : at + batch]
            loss, g = gradients(p, shifted(images[take], rng), labels[take])
            total += loss * batch
            t += 1
            rate = peak * 0.5 * (1 + np.cos(np.pi * t / steps))
            for k in p:
                m[k] += 0.1 * (g[k] - m[k])
                v[k] += 0.001 * (g[k] ** 2 - v[k])
                unbiased = m[k] / (1 - 0.9**t), v[k] / (1 - 0.999**t)
                p[k] -= (rate * unbiased[0] / (np.sqrt(unbiased[1]) + 1e-8)).astype(np.float32)
        if epoch % 10 == 9 or epoch == epochs - 1:
            print(f"epoch {epoch + 1:3}: loss {total / len(order):.4f}", flush=True)
    return p


def accuracy(p, images, labels):
    return float((forward(p, images)[0].argmax(1) == labels).mean())


# ---- export ----


def to_onnx(p):
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["images", "conv1.weight", "conv1.bias"], ["c1"], "conv1", **conv),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("MaxPool", ["r1"], ["p1"], "pool1", **pool),
        helper.make_node("Conv", ["p1", "conv2.weight", "conv2.bias"], ["c2"], "conv2", **conv),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("MaxPool", ["r2"], ["p2"], "pool2", **pool),
        helper.make_node("Flatten", ["p2"], ["flat"], "flatten", axis=1),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "digits",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(v, k) for k, v in p.items()],
    )
    model = helper.make_model(
        graph, producer_name="kernelsmith-examples", ir_version=8,
        opset_imports=[helper.make_opsetid("", 17)],
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--epochs", type=int, default=40)
    ap.add_argument("--out", type=Path, default=HERE)
    args = ap.parse_args()
    (images, labels), (held_images, held_labels) = load()
    p = train(images, labels, args.epochs)
    print(f"accuracy: {accuracy(p, images, labels):.4f} on the {len(images)} trained on, "
          f"{accuracy(p, held_images, held_labels):.4f} on the {len(held_images)} held back")
    onnx.save_model(to_onnx(p), str(args.out / "digits.onnx"))
    np.savez(args.out / "samples.npz", images=held_images)
    np.save(args.out / "labels.npy", held_labels)
    np.save(args.out / "expected.npy", forward(p, held_images)[0].astype(np.float32))


if __name__ == "__main__":
    main()
