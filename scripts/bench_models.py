#!/usr/bin/env python3
"""Time models against ONNX Runtime and OpenVINO, taking turns, and print the ratios.

    .venv/bin/python scripts/bench_models.py [--models resnet50,bert_base] [--threads 2]

Every contestant is a process that has loaded the model and then takes turns of a few tenths of a
second, so that a change of clock or load hits all alike. The medians of all runs are compared.
Without the model zoo (see zoo_prepare.py) only examples/digits is timed. OpenVINO takes part where
it is installed, with its f32 precision hint; `--peers ort,openvino,openvino-default` chooses, the
last being OpenVINO's own choice of precision.

The protocol of a contestant: once ready it prints one line of JSON ({"compile_ms": ...}); for each
line N on its stdin it runs N times and prints {"times_ms": [...]}; at end of file it ends. For
kernelsmith this is `kernelsmith bench MODEL --inputs FILE.npz --stdio`.
"""

from __future__ import annotations

import argparse
import json
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import zoo_prepare

DIGITS = common.ROOT / "examples" / "digits"


# ---- the peers, each in a process of its own ----


def serve(run, compile_ms: float):
    print(json.dumps({"compile_ms": compile_ms}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            began = time.perf_counter()
            run()
            times.append((time.perf_counter() - began) * 1e3)
        print(json.dumps({"times_ms": times}), flush=True)


def load_inputs(path: str) -> dict:
    import numpy as np

    return dict(np.load(path))


def ort_worker(model: str, inputs: str, threads: int):
    import onnxruntime as ort

    began = time.perf_counter()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = load_inputs(inputs)
    serve(lambda: session.run(None, feeds), (time.perf_counter() - began) * 1e3)


def openvino_worker(model: str, inputs: str, threads: int, precision: str | None):
    import openvino as ov

    began = time.perf_counter()
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    feeds = load_inputs(inputs)
    network = ov.Core().read_model(model)
    try:  # sizes known beforehand are what it is fastest with
        network.reshape({name: list(x.shape) for name, x in feeds.items()})
    except RuntimeError:
        pass
    request = ov.Core().compile_model(network, "CPU", config).create_infer_request()
    serve(lambda: request.infer(feeds), (time.perf_counter() - began) * 1e3)


WORKERS = {
    "ort": ort_worker,
    "openvino": lambda m, i, t: openvino_worker(m, i, t, "f32"),
    "openvino-default": lambda m, i, t: openvino_worker(m, i, t, None),
}


def installed_peers() -> list[str]:
    from importlib.util import find_spec

    return [p for p, module in (("ort", "onnxruntime"), ("openvino", "openvino")) if find_spec(module)]


# ---- contestants ----


class Contestant:
    def __init__(self, name: str, argv: list, timeout: float):
        self.name, self.timeout, self.times = name, timeout, []
        self.stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=self.stderr)
        self.compile_ms = self.answer()["compile_ms"]

    def answer(self) -> dict:
        out = self.process.stdout
        if not select.select([out], [], [], self.timeout)[0]:
            self.close()
            raise RuntimeError(f"{self.name}: nothing for {self.timeout:.0f} s")
        line = out.readline()
        if not line:
            self.stderr.seek(0)
            said = self.stderr.read().decode("utf-8", "replace")
            self.close()
            raise RuntimeError(f"{self.name}: {common.first_error(said)}")
        return json.loads(line)

    def turn(self, runs: int) -> list[float]:
        self.process.stdin.write(f"{runs}\n".encode())
        self.process.stdin.flush()
        return self.answer()["times_ms"]

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.stderr.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass


def contest(model: Path, inputs: Path, args) -> dict:
    """Times of one model: {contestant: {...}}, with "error" in place of times where it failed."""
    result, ready = {}, []
    for name in args.contestants:
        if name in WORKERS:
            argv = [sys.executable, __file__, "--worker", name, model, inputs, args.threads]
        else:
            argv = [args.program, "bench", model, "--inputs", inputs, "--stdio",
                    "--backend", name.split(":")[1], "--threads", args.threads]
        try:
            ready.append(Contestant(name, argv, args.timeout))
        except (RuntimeError, ValueError, KeyError) as e:
            result[name] = {"error": str(e)}
    try:
        runs = {}
        for c in ready:  # warm up, and see how many runs fill a turn
            c.turn(2)
            once = statistics.median(c.turn(3))
            runs[c.name] = max(1, min(1000, int(args.turn_s * 1e3 / max(once, 1e-3))))
        for _ in range(args.rounds):
            for c in ready:
                c.times += c.turn(runs[c.name])
                time.sleep(0.03)  # lets the threads of the one before stop spinning
        for c in ready:
            q = statistics.quantiles(c.times, n=10) if len(c.times) > 1 else c.times * 9
            result[c.name] = {"median_ms": statistics.median(c.times), "min_ms": min(c.times),
                              "p10_ms": q[0], "p90_ms": q[-1], "runs": len(c.times),
                              "compile_ms": c.compile_ms}
    except (RuntimeError, OSError) as e:
        result["error"] = str(e)
    finally:
        for c in ready:
            c.close()
    return result


# ---- which models, and telling ----


def find_models(args) -> list[tuple[str, Path, Path]]:
    names = args.models.split(",") if args.models else None
    found = []
    if names is None or "digits" in names:
        found.append(("digits", DIGITS / "digits.onnx", DIGITS / "samples.npz"))
    shared = common.shared_dir()
    if shared is None:
        print("no model zoo here (KS_SHARED): timing examples/digits alone")
        return found
    entries = zoo_prepare.read_index(shared / "models")
    wanted = [e["name"] for e in entries if names is None or e["name"] in names]
    if wanted:
        zoo_prepare.prepare(args.cache, shared / "models", wanted)
    return found + [(n, args.cache / f"{n}.onnx", args.cache / f"{n}.inputs.npz") for n in wanted]


def print_row(name: str, times: dict, contestants: list[str]):
    ours = [c for c in contestants if c not in WORKERS]
    peers = [c for c in contestants if c in WORKERS]
    cells = []
    for c in contestants:
        t = times.get(c, {})
        cells.append(f"{c} {t['median_ms']:.3f}" if "median_ms" in t else f"{c} -")
    for o in ours:
        for p in peers:
            if "median_ms" in times.get(o, {}) and "median_ms" in times.get(p, {}):
                cells.append(f"{o}/{p} {times[o]['median_ms'] / times[p]['median_ms']:.2f}")
    print(f"{name:32} " + "  ".join(cells), flush=True)
    for c in contestants:
        if "error" in times.get(c, {}):
            print(f"    {c}: {times[c]['error'][:200]}", flush=True)
    if "error" in times:
        print(f"    {times['error'][:200]}", flush=True)


def geometric_means(results: dict, contestants: list[str]) -> dict:
    means = {}
    for o in (c for c in contestants if c not in WORKERS):
        for p in (c for c in contestants if c in WORKERS):
            ratios = [t[o]["median_ms"] / t[p]["median_ms"] for t in results.values()
                      if "median_ms" in t.get(o, {}) and "median_ms" in t.get(p, {})]
            if ratios:
                means[f"{o}/{p}"] = {"geometric_mean": statistics.geometric_mean(ratios),
                                     "models": len(ratios), "faster": sum(r < 1 for r in ratios)}
    return means


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        _, _, name, model, inputs, threads = sys.argv
        return WORKERS[name](model, inputs, int(threads))
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--bin", help="the kernelsmith binary (default: the newest built)")
    ap.add_argument("--cache", type=Path, default=common.target_dir() / "zoo")
    ap.add_argument("--models", help="names, separated by commas (default: all)")
    ap.add_argument("--backend", help="ours, separated by commas (default: the first that features.sh tells)")
    ap.add_argument("--peers", help="separated by commas, or none (default: those installed)")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=7)
    ap.add_argument("--turn-s", type=float, default=0.3, help="how long a turn lasts, about")
    ap.add_argument("--timeout", type=float, default=300)
    ap.add_argument("--out", type=Path, help="default: benches/results/models.json")
    args = ap.parse_args()
    args.program = common.find_program(args.bin)
    backends = args.backend.split(",") if args.backend else common.available_backends()[:1]
    peers = installed_peers() if args.peers is None else [p for p in args.peers.split(",") if p in WORKERS]
    args.contestants = [f"kernelsmith:{b}" for b in backends] + peers
    results = {}
    for name, model, inputs in find_models(args):
        results[name] = contest(model, inputs, args)
        print_row(name, results[name], args.contestants)
    means = geometric_means(results, args.contestants)
    for pair, m in means.items():
        print(f"{pair}: geometric mean {m['geometric_mean']:.2f} over {m['models']} models, "
              f"faster on {m['faster']}")
    common.write_json(args.out or common.ROOT / "benches" / "results" / "models.json",
                      {"machine": common.machine(), "threads": args.threads, "rounds": args.rounds,
                       "models": results, "means": means})
    return 0


if __name__ == "__main__":
    sys.exit(main())
