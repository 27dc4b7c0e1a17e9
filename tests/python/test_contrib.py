"""com.microsoft operators against ONNX Runtime's CPU kernels, on random inputs.

Skipped, visibly, without a built kernelsmith (KS_BIN, or the newest that cargo has built) or without onnxruntime.
"""

import os
import sys
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import common  # noqa: E402

try:
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto as T
    from onnx import helper
except ImportError:
    ort = None

MS = "com.microsoft"
ML = "ai.onnx.ml"


def program():
    try:
        return common.find_program(os.environ.get("KS_BIN"))
    except SystemExit:
        return None


PROGRAM = program()


@unittest.skipIf(ort is None, "onnxruntime is not installed")
@unittest.skipIf(PROGRAM is None, "kernelsmith is not built")
class Contrib(unittest.TestCase):
    def setUp(self):
        self.rng = np.random.default_rng(7)

    # ---- inputs ----

    def f(self, *shape, scale=1.0, dtype=np.float32):
        return (self.rng.standard_normal(shape) * scale).astype(dtype)

    def u8(self, *shape):
        return self.rng.integers(0, 256, shape, dtype=np.uint8)

    def i8(self, *shape):
        # without VNNI, ONNX Runtime's products of bytes saturate where two of them leave 16 bits
        return self.rng.integers(-64, 65, shape, dtype=np.int8)

    # ---- one node in both programs ----

    def check(self, op, inputs, outputs=1, rtol=1e-4, atol=1e-4, steps=0, constants=(), domain=MS, **attrs):
        """`inputs`: arrays, None for those left out; `constants`: places of those that are initialisers; `steps`:
        how far integers may differ."""
        names = [f"x{i}" if x is not None else "" for i, x in enumerate(inputs)]
        outs = [f"y{i}" for i in range(outputs)] if isinstance(outputs, int) else outputs
        node = helper.make_node(op, names, outs, domain=domain, **attrs)
        fed = {f"x{i}": x for i, x in enumerate(inputs) if x is not None and i not in constants}
        infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
                 for n, x in fed.items()]
        inits = [onnx.numpy_helper.from_array(inputs[i], f"x{i}") for i in constants]
        results = [helper.make_empty_tensor_value_info(o) for o in outs if o]
        graph = helper.make_graph([node], "contrib", infos, results, inits)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1), helper.make_opsetid(ML, 3)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        data = model.SerializeToString()
        want = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, fed)
        with tempfile.TemporaryDirectory() as tmp:
            path = Path(tmp) / "model.onnx"
            path.write_bytes(data)
            argv = [PROGRAM, "run", path, "--output-dir", tmp]
            for n, x in fed.items():
                np.save(Path(tmp) / f"{n}.npy", x)
                argv += ["--input", f"{n}={tmp}/{n}.npy"]
            done = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, f"{op}: {done.stderr}")
            for i, w in enumerate(want):
                got = np.load(Path(tmp) / f"output_{i}.npy")
                self.assertEqual(got.shape, w.shape, f"{op} output {i}")
                self.assertEqual(got.dtype, w.dtype, f"{op} output {i}")
                if w.dtype.kind in "iu":
                    worst = np.abs(got.astype(np.int64) - w.astype(np.int64)).max(initial=0)
                    self.assertLessEqual(worst, steps, f"{op} output {i}")
                else:
                    np.testing.assert_allclose(got.astype(np.float64), w.astype(np.float64), rtol=rtol, atol=atol,
                                               err_msg=f"{op} output {i}")

    # ---- fused elementwise steps and products ----

    def test_gelus(self):
        self.check("BiasGelu", [self.f(2, 3, 8), self.f(8)])
        self.check("FastGelu", [self.f(2, 3, 8), self.f(8)])
        self.check("QuickGelu", [self.f(2, 3, 8)], alpha=1.5)
        self.check("Gelu", [self.f(2, 3, 8)])

    def test_products(self):
        self.check("FusedMatMul", [self.f(2, 4, 3), self.f(2, 5, 4)], transA=1, transB=1, alpha=0.5)
        self.check("TransposeMatMul", [self.f(2, 4, 3), self.f(2, 4, 5)], transA=1)
        self.check("FusedGemm", [self.f(3, 4), self.f(4, 5), self.f(5)], activation="Relu")
        self.check("CDist", [self.f(4, 3), self.f(5, 3)], metric="euclidean", rtol=1e-3, atol=1e-3)

    def test_convolutions(self):
        self.check("FusedConv", [self.f(1, 3, 6, 6), self.f(4, 3, 3, 3), self.f(4)], activation="LeakyRelu",
                   activation_params=[0.2], pads=[1, 1, 1, 1])
        self.check("NhwcMaxPool", [self.u8(1, 6, 7, 3)], kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])

    def test_normalisations(self):
        x, skip = self.f(2, 3, 8), self.f(2, 3, 8)
        self.check("SkipLayerNormalization", [x, skip, self.f(8), self.f(8), self.f(8)])
        self.check("SkipSimplifiedLayerNormalization", [x, skip, self.f(8)])
        ids = self.rng.integers(0, 5, (2, 3)).astype(np.int32)
        self.check("EmbedLayerNormalization",
                   [ids, np.zeros_like(ids), self.f(5, 8), self.f(6, 8), self.f(2, 8), self.f(8), self.f(8)], 2,
                   constants=(2, 3, 4, 5, 6))

    # ---- names from before the standard ----

    def test_older_names(self):
        self.check("Trilu", [self.f(4, 5)], upper=0)
        self.check("GatherND", [self.f(3, 4), np.array([[0, 1], [2, 3]], np.int64)])
        self.check("ExpandDims", [self.f(3, 4), np.array(1, np.int32)], constants=(1,))
        self.check("Range", [np.array(1.0, np.float32), np.array(4.0, np.float32), np.array(0.5, np.float32)])

    # ---- integers ----

    def scale(self):
        return np.array(self.rng.uniform(0.01, 0.1), np.float32)

    def test_quantised_elementwise(self):
        a, c, z = self.u8(2, 12), self.u8(2, 12), np.array(120, np.uint8)
        for op in ("QLinearAdd", "QLinearMul"):
            self.check(op, [a, self.scale(), z, c, self.scale(), z, self.scale(), z], steps=1)
        for op in ("QLinearSigmoid", "QLinearLeakyRelu"):
            self.check(op, [a, self.scale(), z, self.scale(), z], steps=1, constants=(1, 2, 3, 4))
        self.check("QLinearWhere", [a > 90, a, self.scale(), z, c, self.scale(), z, self.scale(), z], steps=1,
                   constants=(2, 3, 5, 6, 7, 8))
        self.check("QLinearConcat", [self.scale(), z, a, self.scale(), z, c, self.scale(), z], steps=1, axis=1,
                   constants=(0, 1, 3, 4, 6, 7))

    def test_quantised_reductions(self):
        x, z = self.u8(1, 3, 6, 5), np.array(100, np.uint8)
        self.check("QLinearAveragePool", [x, self.scale(), z, self.scale(), z], steps=1, kernel_shape=[2, 2])
        self.check("QLinearGlobalAveragePool", [x, self.scale(), z, self.scale(), z], steps=1)
        self.check("QLinearSoftmax", [self.u8(3, 8), self.scale(), z, np.array(1 / 256, np.float32),
                                      np.array(0, np.uint8)], steps=1, axis=1, opset=13, constants=(1, 2, 3, 4))

    def test_quantised_products(self):
        a, w = self.u8(3, 16), self.i8(16, 8)
        z, zw = np.array(110, np.uint8), np.array(0, np.int8)
        self.check("MatMulIntegerToFloat", [a, w, self.scale(), self.scale(), z, zw, self.f(8)])
        self.check("DynamicQuantizeMatMul", [self.f(3, 16), w, self.scale(), zw], rtol=1e-3, atol=1e-3)
        self.check("QGemm", [a, self.scale(), z, w, self.scale(), zw, None, self.scale(), z], steps=1)
        self.check("QLinearConv", [self.u8(1, 6, 6, 4), self.scale(), z, self.i8(4, 4, 3, 3), self.scale(), zw,
                                   self.scale(), z], steps=1, channels_last=1, pads=[1, 1, 1, 1],
                   constants=(3, 4, 5))

    def test_packed_weights(self):
        k, n, block = 64, 8, 32
        a, packed = self.f(3, k), self.u8(n, k // block, block // 2)
        scales = self.rng.uniform(0.01, 0.1, n * (k // block)).astype(np.float32)
        for zeros in (None, self.u8(n * (k // block) // 2)):
            self.check("MatMulNBits", [a, packed, scales, zeros], K=k, N=n, bits=4, block_size=block, rtol=1e-3,
                       atol=1e-3, constants=(1, 2) if zeros is None else (1, 2, 3))
        for kind in (0, 1):
            self.check("MatMulBnb4", [a, self.u8(n * k // 2), self.rng.uniform(0.5, 2, n * k // 64).astype(np.float32)],
                       K=k, N=n, block_size=64, quant_type=kind, rtol=1e-3, atol=1e-3, constants=(1, 2))
        table, index = self.u8(10, 16), np.array([[1, 9], [0, 3]], np.int64)
        scales = self.rng.uniform(0.01, 0.1, (10, 2)).astype(np.float32)
        self.check("GatherBlockQuantized", [table, index, scales], block_size=16, bits=4, quantize_axis=1,
                   constants=(0, 2))

    # ---- attention ----

    def test_attention(self):
        x, w, bias = self.f(2, 5, 16), self.f(16, 48, scale=0.2), self.f(48)
        self.check("Attention", [x, w, bias], num_heads=4)
        self.check("Attention", [x, w, bias], num_heads=4, unidirectional=1)
        self.check("Attention", [x, w, bias, np.array([5, 3], np.int32)], num_heads=4)
        self.check("QAttention", [self.u8(2, 5, 16), self.i8(16, 48), bias, self.scale(), self.scale(), None,
                                  np.array(128, np.uint8), np.array(0, np.int8)], num_heads=4, rtol=1e-3, atol=1e-3)

    def test_multi_head_attention(self):
        q, k, v = self.f(2, 3, 16), self.f(2, 5, 16), self.f(2, 5, 16)
        self.check("MultiHeadAttention", [q, k, v, self.f(48)], num_heads=4)
        past = self.f(2, 4, 6, 4), self.f(2, 4, 6, 4)
        self.check("MultiHeadAttention", [q, self.f(2, 3, 16), self.f(2, 3, 16), None, None, None, *past], 3,
                   num_heads=4)

    def test_grouped_attention(self):
        b, s, heads, groups, d, past = 2, 3, 4, 2, 16, 5
        q, k, v = self.f(b, s, heads * d), self.f(b, s, groups * d), self.f(b, s, groups * d)
        lens, total = np.full(b, s - 1, np.int32), np.array(s, np.int32)
        empty = np.zeros((b, groups, 0, d), np.float32)
        common_attrs = {"num_heads": heads, "kv_num_heads": groups}
        self.check("GroupQueryAttention", [q, k, v, empty, empty, lens, total], 3, **common_attrs)
        angles = self.rng.uniform(0, 3, (16, d // 2)).astype(np.float32)
        self.check("GroupQueryAttention", [q, k, v, empty, empty, lens, total, np.cos(angles), np.sin(angles)], 3,
                   do_rotary=1, **common_attrs)
        self.check("GroupQueryAttention", [q, k, v, empty, empty, lens, total], 3, smooth_softmax=1, **common_attrs)
        one = [x[:, :1].copy() for x in (q, k, v)]
        cache = self.f(b, groups, past, d), self.f(b, groups, past, d)
        lens, total = np.full(b, past, np.int32), np.array(past + 1, np.int32)
        self.check("GroupQueryAttention", [*one, *cache, lens, total], 3, local_window_size=3, **common_attrs)

    def test_rotary(self):
        angles = self.rng.uniform(0, 3, (16, 4)).astype(np.float32)
        ids = np.array([[0, 1, 2], [4, 5, 6]], np.int64)
        for interleaved in (0, 1):
            self.check("RotaryEmbedding", [self.f(2, 4, 3, 8), ids, np.cos(angles), np.sin(angles)],
                       interleaved=interleaved)

    def test_decoder_attention(self):
        b, heads, d, past, room = 2, 4, 8, 5, 9
        q, k, v = self.f(b, 1, heads * d), self.f(b, 1, heads * d), self.f(b, 1, heads * d)
        op, attrs = "DecoderMaskedMultiHeadAttention", {"num_heads": heads, "past_present_share_buffer": 1}
        shared = self.f(b, heads, room, d), self.f(b, heads, room, d)
        count, mask = np.array([past], np.int32), np.array([[1] * 6, [0, 0, 1, 1, 1, 1]], np.int32)
        self.check(op, [q, k, v, None, None, *shared, count], 3, **attrs)
        self.check(op, [q, k, v, mask, None, *shared, count], 3, **attrs)
        self.check(op, [q, k, v, None, None, *shared, count, None, None, self.f(3 * heads * d)], 3, **attrs)

    # ---- experts ----

    def test_mixture_of_experts(self):
        t, k, n, e = 6, 16, 12, 5
        x, router = self.f(t, k), self.f(t, e)
        w1, b1, w2, b2 = self.f(e, n, k), self.f(e, n), self.f(e, k, n), self.f(e, k)
        for norm in (0, 1):
            self.check("MoE", [x, router, w1, b1, w2, b2], k=2, activation_type="relu",
                       normalize_routing_weights=norm)
        for act in ("gelu", "silu", "identity"):
            self.check("MoE", [x.reshape(2, 3, k), router, w1, None, w2, None], k=3, activation_type=act,
                       rtol=1e-3, atol=1e-3)
        self.check("MoE", [x, router, self.f(e, 2 * n, k), self.f(e, 2 * n), w2, b2], k=2, activation_type="swiglu",
                   swiglu_fusion=1, activation_alpha=1.7, activation_beta=1.0, swiglu_limit=2.0,
                   normalize_routing_weights=1, rtol=1e-3, atol=1e-3)

    def test_quantised_mixture_of_experts(self):
        t, k, n, e = 5, 32, 32, 4
        x, router = self.f(t, k), self.f(t, e)
        for bits in (4, 8):
            w1, w2 = self.u8(e, n, k * bits // 8), self.u8(e, k, n * bits // 8)
            s1, s2 = abs(self.f(e, n)) * 0.02, abs(self.f(e, k)) * 0.02
            self.check("QMoE", [x, router, w1, s1, self.f(e, n), w2, s2, self.f(e, k)], k=2, activation_type="silu",
                       normalize_routing_weights=1, expert_weight_bits=bits, rtol=1e-3, atol=1e-2)

    # ---- regions and classic machine learning ----

    def test_max_roi_pool(self):
        rois = np.array([[0, 1, 1, 6, 5], [1, 0, 2, 3, 7], [0, 5, 5, 2, 2], [1, 12, 12, 20, 20]], np.float32)
        for scale in (1.0, 0.5):
            self.check("MaxRoiPool", [self.f(2, 3, 8, 9), rois], domain="", pooled_shape=[2, 3], spatial_scale=scale)

    def test_support_vector_classifiers(self):
        classes, width, sizes = 3, 4, [3, 2, 4]
        count, machines = sum(sizes), 3
        attrs = {
            "classlabels_ints": [7, 2, 5], "vectors_per_class": sizes,
            "support_vectors": self.f(count * width).tolist(),
            "coefficients": self.f(count * (classes - 1)).tolist(), "rho": self.f(machines).tolist(),
        }
        x = self.f(20, width)
        for kind, params in (("RBF", [0.3, 0.0, 0.0]), ("POLY", [0.3, 0.5, 3.0]), ("SIGMOID", [0.2, 0.1, 0.0]),
                             ("LINEAR", [0.0, 0.0, 0.0])):
            self.check("SVMClassifier", [x], 2, domain=ML, kernel_type=kind, kernel_params=params, rtol=1e-3,
                       atol=1e-4, **attrs)
        self.check("SVMClassifier", [x], 2, domain=ML, kernel_type="RBF", kernel_params=[0.3, 0.0, 0.0], rtol=1e-3,
                   atol=1e-4, prob_a=[-1.5, -0.7, -1.1], prob_b=[0.1, -0.2, 0.05], **attrs)
        two = {
            "classlabels_ints": [3, 9], "vectors_per_class": [3, 2], "support_vectors": self.f(5 * width).tolist(),
            "coefficients": self.f(5).tolist(), "rho": [0.2], "kernel_type": "RBF", "kernel_params": [0.3, 0.0, 0.0],
        }
        self.check("SVMClassifier", [x], 2, domain=ML, rtol=1e-3, atol=1e-4, **two)
        self.check("SVMClassifier", [x], 2, domain=ML, rtol=1e-3, atol=1e-4, prob_a=[-1.5], prob_b=[0.1], **two)
        self.check("SVMClassifier", [x], 2, domain=ML, rtol=1e-3, atol=1e-4, classlabels_ints=[4, 1, 6],
                   coefficients=self.f(3 * width).tolist(), rho=[0.4], kernel_type="LINEAR",
                   kernel_params=[0.0, 0.0, 0.0])

    def test_lstm(self):
        hidden, width = 4, 6
        x = self.f(3, 2, width)
        w, r = self.i8(1, width, 4 * hidden), self.i8(1, hidden, 4 * hidden)
        s = np.array([0.01], np.float32)
        z = np.array([0], np.int8)
        self.check("DynamicQuantizeLSTM", [x, w, r, self.f(1, 8 * hidden), None, None, None, None, s, z, s, z], 3,
                   hidden_size=hidden, rtol=0.05, atol=0.02, constants=(1, 2, 3, 8, 9, 10, 11))


if __name__ == "__main__":
    unittest.main()
