"""`kernelsmith export`: what it writes is valid, and ONNX Runtime gives for it what it gives for the original.

Skipped, visibly, without a built kernelsmith or without onnxruntime.
"""

import subprocess
import tempfile
import unittest
from pathlib import Path

import numpy as np

from test_contrib import PROGRAM, ROOT, ort

DIGITS = ROOT / "examples" / "digits"


@unittest.skipIf(ort is None, "onnxruntime is not installed")
@unittest.skipIf(PROGRAM is None, "kernelsmith is not built")
class Export(unittest.TestCase):
    def both(self, *flags):
        """Outputs of the example network and of what is exported with these flags."""
        import onnx

        original = DIGITS / "digits.onnx"
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.onnx"
            subprocess.run([PROGRAM, "export", original, "--out", out, *flags], check=True, stdout=subprocess.PIPE)
            onnx.checker.check_model(out, full_check=True)
            results = []
            for model in (original, out):
                session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
                with np.load(DIGITS / "samples.npz") as samples:
                    results.append(session.run(None, {session.get_inputs()[0].name: next(iter(samples.values()))}))
            return results

    def compare(self, *flags):
        want, got = self.both(*flags)
        self.assertEqual(len(want), len(got))
        for w, g in zip(want, got):
            np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4)

    def test_as_imported(self):
        self.compare()

    def test_after_the_passes(self):
        self.compare("--stage", "graph")

    def test_constants_beside_the_model(self):
        self.compare("--external", "64")


if __name__ == "__main__":
    unittest.main()
