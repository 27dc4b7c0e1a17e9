#!/usr/bin/env python3
"""One peer as a child process: `peers.py PEER [--cpu]`.

Starting is slow (imports, the device, the first compilation), so a peer starts once and is given one work after the other.
It prints a line of JSON when it has started: what it is. Then it answers each line of standard input with one:

    {"work": NAME, "arguments": [...], "folder": F, "weights": FILE or null}
        the next work of works.py, with inputs F/x0.npy ...; answered when it is ready, its output in F/y.PEER.npy
    N   microseconds of one call on the device, of N one after the other

Before the next work it gives back what the last one held on the device. It ends where anything goes wrong, with the reason
as the last line of standard error.

Peers: `torch` (eager, as a CUDA graph), `torch-cublaslt` (likewise, products by cuBLASLt), `torch.compile`, `jax`. f32 means
f32: TF32 is off everywhere. `copy` is none, but a ceiling: whatever the work, it copies memory of the device with torch, and
says how many bytes that reads and writes. `--cpu` tries a peer without a GPU.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import works

# What `copy` copies: more than any cache holds.
COPIED = 512 << 20


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


class Torch:
    """PyTorch, and what it runs now."""

    def __init__(self, peer, cpu):
        import torch
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        if peer == "torch-cublaslt":
            torch.backends.cuda.preferred_blas_library("cublaslt")
        self.torch, self.peer, self.cpu = torch, peer, cpu
        self.device = "cpu" if cpu else "cuda"
        # what a recorded graph reads, which does not hold it itself
        self.graph, self.held = None, []
        self.operations = torch_operations(torch)
        self.about = {"torch": torch.__version__, "device": "cpu" if cpu else torch.cuda.get_device_name()}
        torch.set_grad_enabled(False)
        self.first_calls()

    def first_calls(self):
        """Loads what the first product, convolution and compilation load."""
        x = self.torch.ones(64, 64, device=self.device)
        self.torch.nn.functional.conv2d((x @ x)[None, None], x[None, None, :3, :3])
        if self.peer == "torch.compile":
            self.torch.compile(lambda x: (x + 1).sum(0), dynamic=False)(x)

    def free(self):
        if self.graph:
            self.graph.reset()
        self.graph, self.held = None, []
        if self.peer == "torch.compile":
            self.torch._dynamo.reset()
        gc.collect()
        if not self.cpu:
            self.torch._C._cuda_clearCublasWorkspaces()
            self.torch.cuda.empty_cache()

    def copy(self):
        n = COPIED // (64 if self.cpu else 1) // 4
        x = self.torch.ones(n, device=self.device)
        y = self.torch.empty_like(x)
        return {"bytes": 2 * 4 * n}, None, self.timed(lambda: y.copy_(x))

    def work(self, tape, arrays, weights):
        """What to say of it, its output, and what measures so many calls."""
        torch, cpu = self.torch, self.cpu
        if self.peer == "copy":
            return self.copy()
        x, w = ([torch.from_numpy(a).to(self.device) for a in all] for all in (arrays, weights))
        work = runs(tape, self.operations)

        class Work(torch.nn.Module):
            """With the weights as parameters: what a recording of torch.compile need not copy."""

            def __init__(self):
                super().__init__()
                self.w = torch.nn.ParameterList([torch.nn.Parameter(t, requires_grad=False) for t in w])

            def forward(self, *x):
                return work(x, list(self.w))

        run = Work().eval()
        if self.peer == "torch.compile":
            for t in x:
                torch._dynamo.mark_static_address(t)
            # sizes that differ from the last work's are none that vary
            run = torch.compile(run, mode=None if cpu else "reduce-overhead", dynamic=False)
        call = lambda: run(*x)
        if cpu:
            return {}, call().numpy(), self.timed(call)
        for _ in range(3):
            y = run(*x).clone()
        torch.cuda.synchronize()
        if self.peer != "torch.compile":
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    run(*x)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph, self.held = torch.cuda.CUDAGraph(), [x, run]
            with torch.cuda.graph(self.graph):
                run(*x)
            call = self.graph.replay
        return {}, y.cpu().numpy(), self.timed(call)

    def timed(self, call):
        torch = self.torch
        if self.cpu:
            return by_clock(call, lambda _: None)

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
        return measure


def by_clock(call, wait):
    def measure(n):
        wait(call())
        began = time.perf_counter()
        for _ in range(n):
            y = call()
        wait(y)
        return (time.perf_counter() - began) * 1e6 / n
    return measure


class Jax:
    """JAX, and what it runs now."""

    def __init__(self):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax
        jax.config.update("jax_default_matmul_precision", "highest")
        self.jax, self.held = jax, []
        self.operations = jax_operations(jax)
        self.about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
        jax.jit(lambda x: x @ x)(np.ones((64, 64), np.float32)).block_until_ready()

    def free(self):
        for x in self.held:
            x.delete()
        self.held = []
        self.jax.clear_caches()
        gc.collect()

    def work(self, tape, arrays, weights):
        x, w = ([self.jax.device_put(a) for a in all] for all in (arrays, weights))
        self.held = [*x, *w]
        run = self.jax.jit(runs(tape, self.operations))
        y = np.asarray(run(x, w))
        return {}, y, by_clock(lambda: run(x, w), lambda y: y.block_until_ready())


def prepared(runner, peer, told):
    """What to say when the work is ready, and what measures it."""
    tape = getattr(works, told["work"])(*told["arguments"])
    folder = Path(told["folder"])
    # mapped, and as if it were writable: torch warns otherwise
    mapped = lambda path: np.asarray(np.load(path, mmap_mode="c"))
    arrays = [mapped(folder / f"x{i}.npy") for i in range(len(tape.inputs))]
    weights = tape.parts(mapped(told["weights"])) if told["weights"] else []
    about, y, measure = runner.work(tape, arrays, weights)
    if y is not None:
        np.save(folder / f"y.{peer}.npy", y)
    measure(2)
    return about, measure


def main():
    peer, *more = sys.argv[1:]
    say = lambda said: print(json.dumps(said), flush=True)
    runner = Jax() if peer == "jax" else Torch(peer, "--cpu" in more)
    say(runner.about)
    measure = None
    for line in sys.stdin:
        if line.startswith("{"):
            measure = None  # it holds on to the last work
            runner.free()
            about, measure = prepared(runner, peer, json.loads(line))
            say(about)
        else:
            say({"us": measure(int(line))})


if __name__ == "__main__":
    main()
