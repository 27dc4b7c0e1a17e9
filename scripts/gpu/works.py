"""Kernels and models that `gpu-check` times, each written once: as a tape of operations, from which come the text that
kernelsmith compiles and what the peers run (peers.py). Weights are random, the same for all, made from seeds."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass
class Tape:
    """Operations in order. A value is its number; f32 throughout."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    # (value, seed, deviation)
    weights: list[tuple[int, int, float]] = field(default_factory=list)
    # (operation, operands, result, attributes)
    ops: list[tuple[str, tuple[int, ...], int, tuple]] = field(default_factory=list)

    def value(self, shape) -> int:
        self.shapes.append(tuple(shape))
        return len(self.shapes) - 1

    def input(self, *shape) -> int:
        self.inputs.append(self.value(shape))
        return self.inputs[-1]

    def weight(self, *shape, fan_in: int, seed: int | None = None) -> int:
        v = self.value(shape)
        self.weights.append((v, len(self.weights) + 1 if seed is None else seed, fan_in ** -0.5))
        return v

    def op(self, name, operands, shape, *attributes) -> int:
        v = self.value(shape)
        self.ops.append((name, tuple(operands), v, attributes))
        return v

    # ---- operations ----

    def matmul(self, x, w):
        """[..., k] by [k, n]."""
        return self.op("matmul", (x, w), (*self.shapes[x][:-1], self.shapes[w][1]))

    def add(self, x, y):
        return self.op("add", (x, y), self.shapes[x])

    def bias(self, x, b, axis):
        """A vector along one axis."""
        return self.op("bias", (x, b), self.shapes[x], axis)

    def relu(self, x):
        return self.op("relu", (x,), self.shapes[x])

    def gelu(self, x):
        return self.op("gelu", (x,), self.shapes[x])

    def exp(self, x):
        return self.op("exp", (x,), self.shapes[x])

    def transpose(self, x, *perm):
        return self.op("transpose", (x,), [self.shapes[x][p] for p in perm], perm)

    def sum(self, x, *axes):
        return self.op("sum", (x,), [d for i, d in enumerate(self.shapes[x]) if i not in axes], axes)

    def softmax(self, x):
        return self.op("softmax", (x,), self.shapes[x])

    def layer_norm(self, x, scale, shift):
        return self.op("layer_norm", (x, scale, shift), self.shapes[x])

    def attention(self, q, k, v, heads):
        """[B, S, D] each, of so many heads; no mask."""
        return self.op("attention", (q, k, v), self.shapes[q], heads)

    def conv(self, x, w, stride=1, groups=1):
        """NCHW, `same` padding for odd kernels."""
        (n, _, h, wide), (out, _, k, _) = self.shapes[x], self.shapes[w]
        size = [(d + 2 * (k // 2) - k) // stride + 1 for d in (h, wide)]
        return self.op("conv", (x, w), (n, out, *size), stride, k // 2, groups)

    def max_pool(self, x):
        """3 x 3, stride 2, padding 1."""
        n, c, h, w = self.shapes[x]
        return self.op("max_pool", (x,), (n, c, (h - 1) // 2 + 1, (w - 1) // 2 + 1))

    def linear(self, x, n):
        k = self.shapes[x][-1]
        y = self.matmul(x, self.weight(k, n, fan_in=k))
        return self.bias(y, self.weight(n, fan_in=100), len(self.shapes[y]) - 1)

    def conv_bias(self, x, out, k, stride=1, groups=1):
        per_group = self.shapes[x][1] // groups
        w = self.weight(out, per_group, k, k, fan_in=per_group * k * k)
        return self.bias(self.conv(x, w, stride, groups), self.weight(out, fan_in=100), 1)

    # ---- as text ----

    def ksg(self) -> str:
        return Text(self).text

    # ---- weights ----

    def write_weights(self, path: Path):
        """The weights one after the other in a file .npy, as kernelsmith makes them. It takes a core some seconds for the
        85 million numbers of BERT-base: all cores do it once, and everyone maps the file."""
        import numpy as np
        count = sum(math.prod(self.shapes[v]) for v, _, _ in self.weights)
        flat = np.asarray(np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count,)))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [pool.submit(fill, part.reshape(-1)[first:first + BLOCK], seed, deviation, first)
                    for part, (_, seed, deviation) in zip(self.parts(flat), self.weights)
                    for first in range(0, part.size, BLOCK)]
            for job in jobs:
                job.result()

    def parts(self, flat: np.ndarray) -> list[np.ndarray]:
        """Each weight's part of all numbers."""
        found, first = [], 0
        for v, _, _ in self.weights:
            n = math.prod(self.shapes[v])
            found.append(flat[first:first + n].reshape(self.shapes[v]))
            first += n
        return found


# Numbers that a thread makes at a time: what it needs on the way stays in its cache.
BLOCK = 1 << 16


def fill(x: np.ndarray, seed: int, deviation: float, first: int):
    """Elements of `random(seed, 0, deviation)` from `first` on. Element i is a normal number by Box and Muller of words 2 i and
    2 i + 1 of SplitMix64."""
    import numpy as np
    i = np.arange(2 * first, 2 * (first + len(x)), dtype=np.uint64)
    z = np.uint64(seed) + (i + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    u = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64)
    u1, u2 = (u[0::2] + 1) / 2**53, u[1::2] / 2**53
    x[:] = deviation * (np.sqrt(-2 * np.log(u1)) * np.cos(2 * np.pi * u2))


class Text:
    """Writes a tape as .ksg text, composites as primitives."""

    def __init__(self, tape: Tape):
        self.tape, self.lines, self.n = tape, [], 0
        heads = [f"const c{i} {ty(tape.shapes[v])} random(seed={seed}, mean=0.0, std={dev!r})"
                 for i, (v, seed, dev) in enumerate(tape.weights)]
        self.names = {v: f"%x{i}" for i, v in enumerate(tape.inputs)}
        for i, (v, _, _) in enumerate(tape.weights):
            self.names[v] = self.put(f"const c{i}", tape.shapes[v])
        self.scalars: dict[float, str] = {}
        self.heads = heads
        for name, operands, result, attributes in tape.ops:
            self.names[result] = getattr(self, name)(tape.shapes[result], *operands, *attributes)
        inputs = ", ".join(f"{self.names[v]}: {ty(tape.shapes[v])}" for v in tape.inputs)
        self.text = "\n".join([*heads, "", f"graph @f({inputs}) {{", *self.lines,
                               f"  return {self.names[tape.ops[-1][2]]}", "}", ""])

    def put(self, text, shape) -> str:
        self.lines.append(f"  %{self.n} = {text} : {ty(shape)}")
        self.n += 1
        return f"%{self.n - 1}"

    def full(self, x: float, shape) -> str:
        if x not in self.scalars:
            self.scalars[x] = self.put(f"const c{len(self.heads)}", ())
            self.heads.append(f"const c{len(self.heads)} f32[] splat({x!r})")
        return self.spread(self.scalars[x], shape, [])

    def spread(self, name, shape, dims) -> str:
        return self.put(f"broadcast {name} shape={list(shape)} dims={dims}", shape)

    def both(self, op, a, b, shape) -> str:
        return self.put(f"{op} {a}, {b}", shape)

    def reduced(self, monoid, name, shape) -> str:
        """Over the last axis, spread over it again."""
        last = len(shape) - 1
        r = self.put(f"reduce {name} monoid={monoid} axes=[{last}]", shape[:-1])
        return self.spread(r, shape, list(range(last)))

    def product(self, a, b, shape, batch, reduce) -> str:
        return self.put(f"contract {a}, {b} batch={batch} reduce={reduce} acc=f32", shape)

    def matmul(self, shape, x, w):
        last = len(self.tape.shapes[x]) - 1
        return self.product(self.names[x], self.names[w], shape, [], [(last, 0)])

    def add(self, shape, x, y):
        return self.both("add", self.names[x], self.names[y], shape)

    def bias(self, shape, x, b, axis):
        return self.both("add", self.names[x], self.spread(self.names[b], shape, [axis]), shape)

    def relu(self, shape, x):
        return self.both("max", self.names[x], self.full(0.0, shape), shape)

    def gelu(self, shape, x):
        inner = self.put(f"erf {self.both('mul', self.names[x], self.full(0.5 ** 0.5, shape), shape)}", shape)
        gate = self.both("mul", self.both("add", inner, self.full(1.0, shape), shape), self.full(0.5, shape), shape)
        return self.both("mul", self.names[x], gate, shape)

    def exp(self, shape, x):
        return self.put(f"exp {self.names[x]}", shape)

    def transpose(self, shape, x, perm):
        return self.put(f"transpose {self.names[x]} perm={list(perm)}", shape)

    def sum(self, shape, x, axes):
        return self.put(f"reduce {self.names[x]} monoid=sum axes={list(axes)}", shape)

    def soft(self, name, shape):
        e = self.put(f"exp {self.both('sub', name, self.reduced('max', name, shape), shape)}", shape)
        return self.both("div", e, self.reduced("sum", e, shape), shape)

    def softmax(self, shape, x):
        return self.soft(self.names[x], shape)

    def layer_norm(self, shape, x, scale, shift):
        last, n = len(shape) - 1, self.full(float(shape[-1]), shape)
        mean = self.both("div", self.reduced("sum", self.names[x], shape), n, shape)
        apart = self.both("sub", self.names[x], mean, shape)
        squares = self.both("mul", apart, apart, shape)
        variance = self.both("div", self.reduced("sum", squares, shape), n, shape)
        deviation = self.put(f"sqrt {self.both('add', variance, self.full(1e-5, shape), shape)}", shape)
        unit = self.both("div", apart, deviation, shape)
        scaled = self.both("mul", unit, self.spread(self.names[scale], shape, [last]), shape)
        return self.both("add", scaled, self.spread(self.names[shift], shape, [last]), shape)

    def attention(self, shape, q, k, v, heads):
        b, s, d = shape
        each = d // heads
        split = [self.put(f"transpose {self.put(f'reshape {self.names[x]} shape={[b, s, heads, each]}', (b, s, heads, each))}"
                          " perm=[0, 2, 1, 3]", (b, heads, s, each)) for x in (q, k, v)]
        square, batch = (b, heads, s, s), [(0, 0), (1, 1)]
        scores = self.product(split[0], split[1], square, batch, [(3, 3)])
        p = self.soft(self.both("mul", scores, self.full(each ** -0.5, square), square), square)
        mixed = self.product(p, split[2], (b, heads, s, each), batch, [(3, 2)])
        back = self.put(f"transpose {mixed} perm=[0, 2, 1, 3]", (b, s, heads, each))
        return self.put(f"reshape {back} shape={list(shape)}", shape)

    def conv(self, shape, x, w, stride, pad, groups):
        two = lambda n: [n, n]
        return self.put(f"convolve {self.names[x]}, {self.names[w]} stride={two(stride)} pad_lo={two(pad)} "
                        f"pad_hi={two(pad)} dilation=[1, 1] base_dilation=[1, 1] groups={groups} acc=f32", shape)

    def max_pool(self, shape, x):
        return self.put(f"window_reduce {self.names[x]} monoid=max size=[3, 3] stride=[2, 2] pad_lo=[1, 1] "
                        "pad_hi=[1, 1] dilation=[1, 1] base_dilation=[1, 1]", shape)


def ty(shape) -> str:
    return f"f32[{', '.join(map(str, shape))}]"


# ---- kernels ----

def product(m, n, k) -> Tape:
    t = Tape()
    t.matmul(t.input(m, k), t.input(k, n))
    return t


def exponential(n) -> Tape:
    t = Tape()
    t.exp(t.input(n))
    return t


def sums(rows, columns, axis) -> Tape:
    t = Tape()
    t.sum(t.input(rows, columns), axis)
    return t


def transposed(rows, columns) -> Tape:
    t = Tape()
    t.transpose(t.input(rows, columns), 1, 0)
    return t


def soft_rows(rows, columns) -> Tape:
    t = Tape()
    t.softmax(t.input(rows, columns))
    return t


def normed_rows(rows, columns) -> Tape:
    t = Tape()
    t.layer_norm(t.input(rows, columns), t.weight(columns, fan_in=1), t.weight(columns, fan_in=1))
    return t


def convolution(batch, channels, size, out, k, stride, groups) -> Tape:
    t = Tape()
    t.relu(t.conv_bias(t.input(batch, channels, size, size), out, k, stride, groups))
    return t


# ---- models ----

def perceptron(batch, width, layers) -> Tape:
    t = Tape()
    x = t.input(batch, width)
    for _ in range(layers):
        x = t.relu(t.linear(x, width))
    t.linear(x, 10)
    return t


def resnet(batch, size, blocks, width) -> Tape:
    """Residual network with bottlenecks (He et al., 2016): ResNet-50 is `resnet(n, 224, [3, 4, 6, 3], 64)`. Batch
    normalisation is folded, as it is for inference."""
    t = Tape()
    x = t.max_pool(t.relu(t.conv_bias(t.input(batch, 3, size, size), width, 7, 2)))
    for stage, many in enumerate(blocks):
        inner = width << stage
        for block in range(many):
            stride = 2 if stage > 0 and block == 0 else 1
            y = t.relu(t.conv_bias(x, inner, 1))
            y = t.relu(t.conv_bias(y, inner, 3, stride))
            y = t.conv_bias(y, 4 * inner, 1)
            skip = t.conv_bias(x, 4 * inner, 1, stride) if block == 0 else x
            x = t.relu(t.add(y, skip))
    t.linear(t.sum(x, 2, 3), 1000)
    return t


def encoder(batch, seq, width, heads, layers) -> Tape:
    """The layers of BERT (Devlin et al., 2019), from embeddings on: BERT-base is `encoder(n, 128, 768, 12, 12)`."""
    t = Tape()
    x = t.input(batch, seq, width)
    norm = lambda v: t.layer_norm(v, t.weight(width, fan_in=1), t.weight(width, fan_in=100))
    for _ in range(layers):
        q, k, v = (t.linear(x, width) for _ in range(3))
        x = norm(t.add(x, t.linear(t.attention(q, k, v, heads), width)))
        x = norm(t.add(x, t.linear(t.gelu(t.linear(x, 4 * width)), width)))
    return t
