"""Tests of scripts/, against a stand-in for the kernelsmith binary (fake_kernelsmith.py).

    .venv/bin/python -m unittest discover -s tests/python
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import bench_models  # noqa: E402
import check_digits  # noqa: E402
import common  # noqa: E402
import conformance  # noqa: E402
import onnx_suite  # noqa: E402
import zoo  # noqa: E402

DIGITS = ROOT / "examples" / "digits"


class WithProgram(unittest.TestCase):
    """A temporary folder with the stand-in, started by the Python that runs the tests."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.tmp = Path(folder.name)
        self.program = self.tmp / "kernelsmith"
        self.program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE}/fake_kernelsmith.py" "$@"\n')
        self.program.chmod(0o755)
        environment = mock.patch.dict(os.environ, {"CARGO_TARGET_DIR": str(self.tmp / "target")})
        environment.start()
        self.addCleanup(environment.stop)

    def pretend(self, **behaviour):
        os.environ.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in behaviour.items()})


class Conformance(WithProgram):
    CASES = ("node/test_a", "node/test_b", "node/test_c", "simple/test_d")

    def setUp(self):
        super().setUp()
        for case in self.CASES:
            (self.tmp / "suite" / case).mkdir(parents=True)
            (self.tmp / "suite" / case / "model.onnx").write_bytes(b"")
        self.list = self.tmp / "passing.txt"

    def run_it(self, *more):
        argv = ["conformance.py", "--bin", str(self.program), "--suite", str(self.tmp / "suite"),
                "--list", str(self.list), "--backend", "cranelift", "--timeout", "1.5", *more]
        out = io.StringIO()
        with mock.patch.object(sys, "argv", argv), contextlib.redirect_stdout(out):
            status = conformance.main()
        results = json.loads((self.tmp / "target" / "conformance" / "cranelift.json").read_text())
        return status, {c: r["status"] for c, r in results.items()}, out.getvalue()

    def test_bless_adds_and_then_holds(self):
        self.pretend(FAKE_CASES={"test_b": "unsupported"})
        self.assertEqual(self.run_it("--bless")[0], 0)
        self.assertEqual(conformance.read_list(self.list),
                         {c: {"cranelift"} for c in self.CASES if c != "node/test_b"})
        self.pretend(FAKE_CASES={"test_c": "fail"})
        status, _, out = self.run_it("--bless")
        self.assertEqual(status, 1)
        self.assertIn("BROKEN node/test_c: fail", out)
        self.assertIn("node/test_c", conformance.read_list(self.list), "blessing never removes")
        self.assertIn("node/test_b", conformance.read_list(self.list))

    def test_other_backends_are_kept(self):
        conformance.write_list(self.list, {"node/test_a": {"llvm"}})
        self.run_it("--bless")
        self.assertEqual(conformance.read_list(self.list)["node/test_a"], {"llvm", "cranelift"})

    def test_crash_and_hang_cost_one_case_each(self):
        self.pretend(FAKE_CASES={"test_a": "crash", "test_c": "hang"})
        status, results, _ = self.run_it("--chunk", "100")
        self.assertEqual(status, 0, "nothing is listed yet")
        self.assertEqual(results, dict(zip(self.CASES, ("crash", "pass", "timeout", "pass"))))

    def test_what_the_time_is_not_enough_for_is_no_failure(self):
        conformance.write_list(self.list, {"node/test_b": {"cranelift"}})
        self.pretend(FAKE_CASES={"test_b": "hang"})
        status, results, out = self.run_it("--chunk", "100", "--timeout", "60", "--seconds", "2")
        self.assertEqual((status, results), (0, dict.fromkeys(self.CASES, conformance.NOT_RUN) | {"node/test_a": "pass"}))
        self.assertIn("1 of 1 pass (100.0%), 3 not run", out)

    def test_contract(self):
        self.pretend(FAKE_CASES={"test_a": "garbage"})
        status, results, out = self.run_it()
        self.assertEqual((status, results["node/test_a"]), (1, "missing"))
        self.assertIn("CONTRACT bad line", out)

    def test_a_listed_case_that_is_gone(self):
        conformance.write_list(self.list, {"node/test_z": {"cranelift"}})
        self.assertEqual(self.run_it()[0], 1)
        self.assertEqual(self.run_it("--include", "test_a")[0], 0)


class Zoo(WithProgram):
    def row(self, how="", **args):
        self.pretend(FAKE_RUN=how)
        case = zoo.Case("digits", "default", DIGITS / "digits.onnx", DIGITS / "samples.npz",
                        [np.load(DIGITS / "expected.npy")], "f32", zoo.TOLERANCES["f32"])
        settings = {"work": self.tmp, "program": self.program, "threads": None, "timeout": 60,
                    "memory_mb": 4000, "json_supported": True} | args
        return zoo.run_case(case, "cranelift", SimpleNamespace(**settings))

    def test_right(self):
        row = self.row()
        self.assertEqual((row["status"], row["compile_ms"], row["run_ms"]), ("ok", 1.5, 0.25))
        self.assertLess(row["max_error"], 1e-5)

    def test_wrong(self):
        row = self.row("wrong")
        self.assertEqual(row["status"], "wrong")
        self.assertIn("elements differ", row["detail"])

    def test_refused_names_the_node(self):
        row = self.row("unsupported")
        self.assertEqual(row["status"], "refused")
        self.assertIn("conv1", row["detail"])

    def test_crash_and_timeout(self):
        self.assertIn("SIGABRT", self.row("crash")["detail"])
        self.assertEqual(self.row("hang", timeout=0.5)["status"], "timeout")

    def test_memory(self):
        self.assertEqual(self.row("hang", memory_mb=1)["status"], "memory")

    def test_table(self):
        rows = [self.row(), self.row("unsupported") | {"backend": "llvm"}]
        text = zoo.markdown(rows, ["llvm", "cranelift"])
        self.assertIn("* llvm: 1 refused", text)
        self.assertIn("| digits | default | f32 | refused |", text)


class Bench(WithProgram):
    def test_contest(self):
        args = SimpleNamespace(contestants=["kernelsmith:cranelift"], program=self.program, threads=1,
                               timeout=30, turn_s=0.01, rounds=2, flags="")
        times = bench_models.contest(DIGITS / "digits.onnx", DIGITS / "samples.npz", args)
        self.assertGreater(times["kernelsmith:cranelift"]["runs"], 1)

    def test_a_contestant_that_cannot(self):
        args = SimpleNamespace(contestants=["kernelsmith:cranelift"], program="/bin/false", threads=1,
                               timeout=30, turn_s=0.01, rounds=2, flags="")
        times = bench_models.contest(DIGITS / "digits.onnx", DIGITS / "samples.npz", args)
        self.assertIn("error", times["kernelsmith:cranelift"])

    def test_starts(self):
        args = SimpleNamespace(contestants=["kernelsmith:cranelift"], program=self.program, threads=1,
                               timeout=30, rounds=1, flags="")
        found = bench_models.starts(DIGITS / "digits.onnx", DIGITS / "samples.npz", args)
        self.assertEqual(set(found), {"kernelsmith:cranelift first", "kernelsmith:cranelift second"})
        self.assertGreater(found["kernelsmith:cranelift first"]["peak_mb"], 0)

    def test_ratios_are_against_the_fastest_peer(self):
        def times(ours, ort, openvino):
            found = {"kernelsmith:llvm": ours, "ort": ort, "openvino": openvino}
            return {c: {"median_ms": t} if t else {"error": "?"} for c, t in found.items()}

        results = {"vgg16": times(2, 8, 4), "unet": times(2, 1, None), "gpt2": times(None, 1, 1)}
        found = bench_models.summaries(results, ["kernelsmith:llvm", "ort", "openvino"])["kernelsmith:llvm"]
        self.assertEqual(found["openvino"]["models"], 1)
        self.assertAlmostEqual(found["dense"]["geometric_mean"], 1.0)
        self.assertEqual((found["dense"]["least_model"], found["dense"]["faster"]), ("unet", 1))
        self.assertNotIn("transformer", found)
        svg = bench_models.plot(results, ["kernelsmith:llvm", "ort", "openvino"])
        self.assertEqual((svg.count("<rect"), svg.count("</svg>")), (3, 1))


class Compare(unittest.TestCase):
    TOL = common.Tolerance(rtol=1e-3, scaled=1e-4)

    def check(self, got, want):
        return common.compare(np.asarray(got), np.asarray(want), self.TOL).ok

    def test_floats(self):
        self.assertTrue(self.check(np.float32([1, 100]), np.float32([1.005, 100])))
        self.assertFalse(self.check(np.float32([1, 100]), np.float32([1.05, 100])))

    def test_specials(self):
        self.assertTrue(self.check(np.float32([np.nan, np.inf]), np.float32([np.nan, np.inf])))
        self.assertFalse(self.check(np.float32([np.nan]), np.float32([1])))
        self.assertFalse(self.check(np.float32([1]), np.float32([np.nan])))
        self.assertFalse(self.check(np.float32([-np.inf]), np.float32([np.inf])))

    def test_shapes_types_integers(self):
        self.assertFalse(self.check(np.zeros((2, 1), np.float32), np.zeros(2, np.float32)))
        self.assertFalse(self.check(np.zeros(2, np.float64), np.zeros(2, np.float32)))
        self.assertFalse(self.check(np.array([1, 2]), np.array([1, 3])))
        self.assertTrue(self.check(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)))

    def test_bfloat16(self):
        x = np.float32([1.0, -2.5, 3.14159, np.inf, 1 + 2**-8, 1 + 3 * 2**-8])
        back = common.bf16_to_f32(common.f32_to_bf16(x))
        np.testing.assert_array_equal(back[:2], x[:2])
        np.testing.assert_array_equal(back[4:], np.float32([1.0, 1 + 2**-6]))
        self.assertTrue(np.isnan(common.bf16_to_f32(common.f32_to_bf16(np.float32([np.nan])))).all())


class Digits(unittest.TestCase):
    def judge(self, array):
        with tempfile.NamedTemporaryFile(suffix=".npy") as f:
            np.save(f.name, array)
            with (mock.patch.object(sys, "argv", ["check_digits.py", f.name]),
                  contextlib.redirect_stdout(io.StringIO())):
                check_digits.main()

    def test_judge(self):
        expected = np.load(DIGITS / "expected.npy")
        self.judge(expected)
        for wrong in (expected + np.float32(0.01), expected[:-1], np.where(expected > 9, np.nan, expected)):
            with self.assertRaises(SystemExit):
                self.judge(wrong.astype(np.float32))

    def test_models_answer_as_recorded(self):
        from onnx.reference import ReferenceEvaluator

        for name in ("digits", "xor"):
            folder = ROOT / "examples" / name
            got = ReferenceEvaluator(str(folder / f"{name}.onnx")).run(None, dict(np.load(folder / "samples.npz")))
            np.testing.assert_allclose(got[0], np.load(folder / "expected.npy"), rtol=1e-3, atol=1e-4)


class Suite(unittest.TestCase):
    def test_encode(self):
        import onnx

        tensor = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2])
        data = onnx_suite.encode(np.float32([1, 2]), tensor)
        np.testing.assert_array_equal(
            onnx.numpy_helper.to_array(onnx.TensorProto.FromString(data)), np.float32([1, 2]))
        sequence = onnx.helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, None)
        data = onnx_suite.encode([np.float32([1]), np.float32([2, 3])], sequence)
        back = onnx.numpy_helper.to_list(onnx.SequenceProto.FromString(data))
        self.assertEqual([len(x) for x in back], [1, 2])


if __name__ == "__main__":
    unittest.main()
