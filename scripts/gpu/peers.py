#!/usr/bin/env python3
"""One peer as a child process: `peers.py PEER NAME ARGUMENTS-AS-JSON INPUTS.npz`.

Prints a line of JSON when it is ready (what it is, and where it can, the output of the work in the file INPUTS.PEER.npy), then
one for each line N of standard input: microseconds of one call on the device, of N one after the other.

Peers: `torch` (eager, as a CUDA graph), `torch-cublaslt` (likewise, products by cuBLASLt), `torch.compile`, `jax`. f32 means
f32: TF32 is off everywhere. `--cpu` as the last argument tries a peer without a GPU.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import works


def torch_operations(torch):
    f = torch.nn.functional

    def attention(q, k, v, heads):
        b, s, d = q.shape
        q, k, v = (x.view(b, s, heads, d // heads).transpose(1, 2) for x in (q, k, v))
        return f.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, d)

    def bias(x, b, axis):
        return x + b.view([-1 if i == axis else 1 for i in range(x.dim())])

    return {
        "matmul": lambda x, w: x @ w, "add": lambda x, y: x + y, "bias": bias, "relu": f.relu, "gelu": f.gelu,
        "exp": torch.exp, "transpose": lambda x, perm: x.permute(perm).contiguous(),
        "sum": lambda x, axes: x.sum(dim=axes), "softmax": lambda x: f.softmax(x, -1),
        "layer_norm": lambda x, scale, shift: f.layer_norm(x, x.shape[-1:], scale, shift),
        "attention": attention, "conv": lambda x, w, stride, pad, groups: f.conv2d(x, w, None, stride, pad, 1, groups),
        "max_pool": lambda x: f.max_pool2d(x, 3, 2, 1),
    }


def jax_operations(jax):
    jnp, lax = jax.numpy, jax.lax

    def attention(q, k, v, heads):
        b, s, d = q.shape
        q, k, v = (x.reshape(b, s, heads, d // heads) for x in (q, k, v))
        return jax.nn.dot_product_attention(q, k, v).reshape(b, s, d)

    def layer_norm(x, scale, shift):
        apart = x - x.mean(-1, keepdims=True)
        return apart / jnp.sqrt((apart * apart).mean(-1, keepdims=True) + 1e-5) * scale + shift

    def conv(x, w, stride, pad, groups):
        return lax.conv_general_dilated(x, w, (stride, stride), [(pad, pad)] * 2, feature_group_count=groups,
                                        dimension_numbers=("NCHW", "OIHW", "NCHW"))

    def max_pool(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), [(0, 0), (0, 0), (1, 1), (1, 1)])

    return {
        "matmul": lambda x, w: x @ w, "add": lambda x, y: x + y,
        "bias": lambda x, b, axis: x + b.reshape([-1 if i == axis else 1 for i in range(x.ndim)]),
        "relu": lambda x: jnp.maximum(x, 0), "gelu": lambda x: jax.nn.gelu(x, approximate=False), "exp": jnp.exp,
        "transpose": lambda x, perm: jnp.transpose(x, perm), "sum": lambda x, axes: x.sum(axes),
        "softmax": lambda x: jax.nn.softmax(x, -1), "layer_norm": layer_norm, "attention": attention, "conv": conv,
        "max_pool": max_pool,
    }


def runs(tape: works.Tape, operations):
    """The work as a function of inputs and weights."""
    ops, result = tape.ops, tape.ops[-1][2]

    def run(inputs, weights):
        values = dict(zip(tape.inputs, inputs)) | {w[0]: x for w, x in zip(tape.weights, weights)}
        for name, operands, out, attributes in ops:
            values[out] = operations[name](*(values[o] for o in operands), *attributes)
        return values[result]
    return run


def torch_peer(peer, tape, arrays, weights, cpu):
    import torch
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    if peer == "torch-cublaslt":
        torch.backends.cuda.preferred_blas_library("cublaslt")
    device = "cpu" if cpu else "cuda"
    x, w = ([torch.from_numpy(a).to(device) for a in all] for all in (arrays, weights))
    work = runs(tape, torch_operations(torch))

    class Work(torch.nn.Module):
        """With the weights as parameters: what a recording of torch.compile need not copy."""

        def __init__(self):
            super().__init__()
            self.w = torch.nn.ParameterList([torch.nn.Parameter(t, requires_grad=False) for t in w])

        def forward(self, *x):
            return work(x, list(self.w))

    run = Work().eval()
    if peer == "torch.compile":
        for t in x:
            torch._dynamo.mark_static_address(t)
        run = torch.compile(run, mode=None if cpu else "reduce-overhead")
    torch.set_grad_enabled(False)
    about = {"torch": torch.__version__, "device": "cpu" if cpu else torch.cuda.get_device_name()}
    if cpu:
        call = lambda: run(*x)
        return about, call().numpy(), by_clock(call, lambda _: None)
    for _ in range(3):
        y = run(*x).clone()
    torch.cuda.synchronize()
    call = lambda: run(*x)
    if peer != "torch.compile":
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                run(*x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run(*x)
        call = graph.replay

    def measure(n):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # the clock comes up again after the others' turns
        call()
        call()
        begin.record()
        for _ in range(n):
            call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) * 1e3 / n
    return about, y.cpu().numpy(), measure


def by_clock(call, wait):
    def measure(n):
        wait(call())
        began = time.perf_counter()
        for _ in range(n):
            y = call()
        wait(y)
        return (time.perf_counter() - began) * 1e6 / n
    return measure


def jax_peer(tape, arrays, weights):
    import os
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    jax.config.update("jax_default_matmul_precision", "highest")
    x, w = ([jax.device_put(a) for a in all] for all in (arrays, weights))
    run = jax.jit(runs(tape, jax_operations(jax)))
    y = np.asarray(run(x, w))
    wait = lambda y: y.block_until_ready()
    about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    return about, y, by_clock(lambda: run(x, w), wait)


def main():
    peer, name, arguments, inputs, *more = sys.argv[1:]
    tape = getattr(works, name)(*json.loads(arguments))
    with np.load(inputs) as given:
        arrays = [given[f"x{i}"] for i in range(len(tape.inputs))]
    weights = tape.arrays()
    if peer == "jax":
        about, y, measure = jax_peer(tape, arrays, weights)
    else:
        about, y, measure = torch_peer(peer, tape, arrays, weights, "--cpu" in more)
    np.save(f"{inputs}.{peer}.npy", y)
    measure(2)
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        print(json.dumps({"us": measure(int(line))}), flush=True)


if __name__ == "__main__":
    main()
