"""`kernelsmith test-cases` on every backend that judges cases, the reference interpreter among them.

Skipped, visibly, without a built kernelsmith or without the package onnx.
"""

import json
import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np

from test_contrib import PROGRAM, common

try:
    import onnx
except ImportError:
    onnx = None


@unittest.skipIf(onnx is None, "onnx is not installed")
@unittest.skipIf(PROGRAM is None, "kernelsmith is not built")
class Cases(unittest.TestCase):
    def judged(self, folder: Path, *flags) -> list[str]:
        listing, out = folder / "list.txt", folder / "out.jsonl"
        listing.write_text(f"{folder / 'right'}\n{folder / 'wrong'}\n")
        out.unlink(missing_ok=True)
        subprocess.run([PROGRAM, "test-cases", "--list", listing, "--jsonl", out, *flags], check=True)
        return [json.loads(line)["status"] for line in out.read_text().splitlines()]

    def test_backends(self):
        value = lambda name: onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [3])
        node = onnx.helper.make_node("Neg", ["x"], ["y"])
        model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value("x")], [value("y")]),
                                       opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
        x = np.array([1, -2, 0.5], np.float32)
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            for name, y in [("right", -x), ("wrong", x)]:
                data = folder / name / "test_data_set_0"
                data.mkdir(parents=True)
                (folder / name / "model.onnx").write_bytes(model.SerializeToString())
                for kind, v in [("input", x), ("output", y)]:
                    tensor = onnx.numpy_helper.from_array(v, "x" if kind == "input" else "y")
                    (data / f"{kind}_0.pb").write_bytes(tensor.SerializeToString())
            for flags in [[], ["--backend", "interp"], *(["--device", d] for d in common.devices())]:
                with self.subTest(flags):
                    self.assertEqual(self.judged(folder, *flags), ["pass", "fail"])


if __name__ == "__main__":
    unittest.main()
