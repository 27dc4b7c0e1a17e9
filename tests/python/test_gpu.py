"""Tests of scripts/gpu: works as tapes, contests of processes, the table, how results of a device are compared."""

import argparse
import json
import struct
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "scripts" / "gpu"), str(ROOT / "scripts")]

import children  # noqa: E402
import common  # noqa: E402
import golden  # noqa: E402
import works  # noqa: E402


def contestant(body: str) -> list[str]:
    """A process whose calls take what `body` makes of n."""
    return [sys.executable, "-c", "import sys, time\nprint('{}', flush=True)\nfor line in sys.stdin:\n"
            f"    n = int(line)\n    {body}"]


def says(us) -> list[str]:
    return contestant(f"print('{{\"us\": {us}}}', flush=True)")


def contest(argv: dict, rounds, seconds) -> dict:
    all_of_them = [children.Contestant(name, a) for name, a in argv.items()]
    try:
        return children.contest(all_of_them, rounds, time.monotonic(), seconds)
    finally:
        for c in all_of_them:
            c.end()


class Contest(unittest.TestCase):
    def test_medians_and_ratios(self):
        found = contest({"ours": says(20.0), "slow": says(50.0), "fast": says(10.0)}, 3, 30)
        self.assertEqual(found["us"], {"ours": 20.0, "slow": 50.0, "fast": 10.0})
        self.assertEqual(found["ratios"], {"slow": 2.5, "fast": 0.5})
        self.assertEqual(found["could_not"], {})

    def test_device_times_of_ours(self):
        ours = contestant("print('{\"times_ms\": [1.0], \"device_us\": 7.5}', flush=True)")
        self.assertEqual(contest({"ours": ours}, 2, 30)["us"], {"ours": 7.5})

    def test_who_cannot_costs_nobody_else(self):
        dies = [sys.executable, "-c", "raise SystemExit('no such device')"]
        later = contestant("sys.exit('gone') if n > 3 else print('{\"us\": 1.0}', flush=True)")
        found = contest({"ours": says(20.0), "dies": dies, "later": later}, 3, 30)
        self.assertEqual(found["us"], {"ours": 20.0})
        self.assertEqual(found["could_not"], {"dies": "no such device", "later": "gone"})

    def test_a_hang_ends_in_time(self):
        hangs = contestant("time.sleep(60)")
        with mock.patch.object(children, "TURN_SECONDS", 1.0):
            found = contest({"ours": says(20.0), "hangs": hangs}, 2, 3)
        self.assertIn("in time", found["could_not"]["hangs"])

    def test_without_ours_the_item_is_wrong(self):
        found = contest({"ours": [sys.executable, "-c", "raise SystemExit('broken')"], "a": says(1)}, 2, 30)
        self.assertEqual((found["ok"], found["said"]), (False, "broken"))

    def test_peers_start_once_and_anew_after_they_failed(self):
        # says who it is; ready for each work but "bad", where it ends
        body = ("import json, os, sys\nprint(json.dumps({'pid': os.getpid()}), flush=True)\nfor line in sys.stdin:\n"
                "    told = json.loads(line)\n    if told == {'work': 'bad'}: sys.exit('too bad')\n"
                "    print('{\"us\": 3.0}' if isinstance(told, int) else '{}', flush=True)")
        peers = children.Peers({"peer": [sys.executable, "-c", body]})
        self.addCleanup(peers.end)
        peers.start(["peer"])

        def of(work):
            told, left_out = peers.tell(["peer"], {"work": work}, time.monotonic() + 20)
            self.assertEqual(left_out, {})
            return children.contest(told, 2, time.monotonic(), 20)
        first, second, bad, third = of("a"), of("b"), of("bad"), of("c")
        self.assertEqual([f["us"] for f in (first, second, bad, third)], [{"peer": 3.0}] * 2 + [{}] + [{"peer": 3.0}])
        self.assertEqual(bad["could_not"], {"peer": "too bad"})
        self.assertEqual(first["about"], second["about"])
        self.assertNotEqual(first["about"], third["about"])

    def test_a_peer_that_cannot_start_is_not_waited_for_again(self):
        peers = children.Peers({"gone": [sys.executable, "-c", "raise SystemExit('no such module')"],
                                "slow": [sys.executable, "-c", "import time; time.sleep(60)"]})
        self.addCleanup(peers.end)
        for _ in range(2):
            told, left_out = peers.tell(["gone", "slow"], {}, time.monotonic() + 1)
            self.assertEqual(told, [])
            self.assertEqual(left_out, {"gone": "has not started: no such module", "slow": "is still starting"})
        with mock.patch.object(children, "START_SECONDS", 0.0):
            self.assertIn("has not started", peers.tell(["slow"], {}, time.monotonic() + 1)[1]["slow"])

    def test_table(self):
        row = {"ok": True, "run_ms": 1.5, "load_ms": 20.0, "kernels": 2, "device_us": 9.0, "bytes": 90_000,
               "us": {"ours": 10.0, "torch": 12.0, "copy": 15.0}, "ratios": {"torch": 1.2, "copy": 1.5},
               "could_not": {"jax": "not | there"}, "about": {"torch": {"torch": "2.0"}, "copy": {"bytes": 180_000}}}
        results = {"golden": {"xor": {"ok": False, "said": "a | b"}}, "kernels": {"exp": row}}
        text = children.report("cuda", False, results, ["torch", "jax"])
        self.assertIn("| golden | xor | **wrong** a / b |", text)
        self.assertIn("| exp | 10.0 | 9 | 0.75 | 12.0 (1.20) | 1.500 | 20 | 2 |", text)
        self.assertIn("- torch: torch 2.0", text)


class Works(unittest.TestCase):
    def test_weights(self):
        # the first: elements of `random(seed=33, mean=0.0, std=1.0)`, as the reference interpreter makes them
        t = works.Tape()
        t.weight(2, 3, fan_in=1, seed=33)
        t.weight(works.BLOCK + 5, fan_in=4, seed=7)
        with tempfile.TemporaryDirectory() as tmp:
            t.write_weights(Path(tmp) / "w.npy")
            x, y = t.parts(np.load(Path(tmp) / "w.npy"))
        self.assertEqual((x.shape, x.dtype), ((2, 3), np.float32))
        np.testing.assert_allclose(x[0], [1.670316, 0.841840, 0.766181], rtol=1e-4)
        # blocks follow each other
        end = np.empty(10, np.float32)
        works.fill(end, 7, 0.5, works.BLOCK - 5)
        np.testing.assert_allclose(y[-10:], end, rtol=1e-6)

    def test_shapes(self):
        t = works.resnet(1, 224, [3, 4, 6, 3], 64)
        self.assertEqual(t.shapes[t.ops[-1][2]], (1, 1000))
        parameters = sum(int(np.prod(t.shapes[w[0]])) for w in t.weights)
        # ResNet-50 has 25.6 million, those of batch normalisation included
        self.assertAlmostEqual(parameters / 1e6, 25.5, delta=0.1)
        t = works.encoder(2, 128, 768, 12, 12)
        self.assertEqual(t.shapes[t.ops[-1][2]], (2, 128, 768))
        self.assertAlmostEqual(sum(int(np.prod(t.shapes[w[0]])) for w in t.weights) / 1e6, 85.0, delta=0.2)

    def test_constants_are_listed_in_order(self):
        lines = works.encoder(1, 3, 8, 2, 1).ksg().splitlines()
        heads = [line.split()[1] for line in lines if line.startswith("const")]
        self.assertEqual(heads, [f"c{i}" for i in range(len(heads))])


class Golden(unittest.TestCase):
    def wrong(self, compare, want, got, skip=()):
        return golden.Compared({"compare": compare, "open": list(skip)}, want, got).wrong

    def test_bits(self):
        self.assertEqual(self.wrong({"bits": 2}, b"\0\1\2\3\4\5", b"\0\1\2\7\4\6"), [1, 2])
        self.assertEqual(self.wrong({"bits": 2}, b"\0\1\2\3\4\5", b"\0\1\2\7\4\6", [1]), [2])

    def test_numbers(self):
        f32s = lambda *x: struct.pack(f"<{len(x)}f", *x)
        how = {"float": "f32", "relative": 0.0, "absolute": 0.0, "any_zero": False}
        nan = struct.pack("<I", 0xFFC00001)
        self.assertEqual(self.wrong(how, f32s(1.0) + nan, f32s(1.0, float("nan"))), [])
        self.assertEqual(self.wrong(how, f32s(1.0, 2.0), f32s(1.0) + nan), [1])
        self.assertEqual(self.wrong(how, f32s(0.0, float("inf")), f32s(-0.0, 3e38)), [0, 1])
        near = how | {"relative": 1e-6, "any_zero": True}
        self.assertEqual(self.wrong(near, f32s(0.0, 8.0, 8.0), f32s(-0.0, 8.000004, 8.00002)), [2])

    def test_formats(self):
        for form, one, next_one in [("f16", "003c", "013c"), ("bf16", "803f", "813f"), ("f64", "000000000000f03f", "010000000000f03f")]:
            how = {"float": form, "relative": 0.0, "absolute": 0.0, "any_zero": False}
            one, next_one = bytes.fromhex(one), bytes.fromhex(next_one)
            self.assertEqual(golden.numbers(one, form), [1.0])
            self.assertEqual(self.wrong(how, one + one, one + next_one), [1])
        how = {"float": "tf32", "relative": 0.0, "absolute": 0.0, "any_zero": False}
        self.assertEqual(self.wrong(how, bytes.fromhex("0000803f0000803f"), bytes.fromhex("ff1f803f0020803f")), [1])

    def test_alternatives_and_guards(self):
        buffer = {"before": 0, "after": [1, 2], "compare": {"bits": 1}, "open": []}
        strings = [b"\0\0", b"\1\1", b"\2\2"]
        memory = lambda inner, last=golden.GUARD: bytearray([golden.GUARD, *inner, last])
        of = lambda after: golden.outcome({"buffers": [buffer]}, strings, [1], memory(b"\0\0"), after)
        self.assertTrue(of(memory(b"\1\1"))["ok"] and of(memory(b"\2\2"))["ok"])
        self.assertEqual(of(memory(b"\2\1"))["element"], 0)
        self.assertIn("behind", of(memory(b"\1\1", 0))["said"])

    def test_replays_on_the_stand_in(self):
        drivers = list(common.target_dir().glob("*/libkernelsmith_ptx_driver.so"))
        if not drivers:
            self.skipTest("the stand-in driver is not built (make program)")
        text = """.version 7.0
.target sm_80
.address_size 64
.visible .entry numbers(.param .u64 to)
{
    .reg .b32 %r<2>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd0, [to];
    cvta.to.global.u64 %rd1, %rd0;
    mov.b32 %r0, %tid.x;
    mad.wide.s32 %rd2, %r0, 4, %rd1;
    st.global.b32 [%rd2], %r0;
    ret;
}
"""
        right, wrong = (struct.pack("<4I", *x) for x in ([0, 1, 2, 3], [0, 1, 7, 3]))
        case = lambda name, after: {
            "name": name, "group": "g", "entry": "numbers", "grid": [1, 1, 1], "block": [4, 1, 1], "shared": 0,
            "arguments": [[0, 0]], "buffers": [{"before": 0, "after": [after], "compare": {"bits": 4}, "open": []}]}
        module = {"source": "kernels", "text": text, "strings": [bytes(16).hex(), right.hex(), wrong.hex()],
                  "cases": [case("right", 1), case("wrong", 2)]}
        args = argparse.Namespace(driver=str(max(drivers, key=lambda p: p.stat().st_mtime).resolve()), jobs=1,
                                  case_seconds=10, total=60)
        found = golden.Replay(args).run([json.dumps(module) + "\n"])
        self.assertEqual((found["passed"], found["failed"], found["not_run"]), (1, 1, 0), found)
        self.assertIn("element 2", found["failures"][0]["said"])


if __name__ == "__main__":
    unittest.main()
