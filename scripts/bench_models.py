#!/usr/bin/env python3
"""Time models against ONNX Runtime, OpenVINO and tract, taking turns, and print the ratios.

    .venv/bin/python scripts/bench_models.py [--models resnet50,bert_base | --families dense,int8] [--threads 2]

Ratios are peer over ours: above 1 we are faster. `best` is the ratio to the fastest peer that was asked.
Families of models (FAMILIES) get geometric means of it.

Every contestant is a process that has loaded the model and then takes turns of a few tenths of a
second, so that a change of clock or load hits all alike. The medians of all runs are compared.
Without the model zoo (see zoo_prepare.py) only examples/digits is timed. OpenVINO takes part where
it is installed, with its f32 precision hint, and tract where `--build-tract` (some minutes, once) has built it from
the crate registry. `--peers ort,openvino,openvino-default,tract` chooses; openvino-default is OpenVINO's own choice of
precision.

`--start` measures starts in place of runs: milliseconds until a model is ready to run, and the peak of resident
memory (VmHWM) after it has run once, medians of `--rounds` processes. For peers the clock starts after
the interpreter and the peer's modules are loaded; for kernelsmith it starts before its process does. A first start
has an empty cache, a second one what the first has left there; in both the model file lies in the page cache.

The protocol of a contestant: once ready it prints one line of JSON ({"compile_ms": ...}); for each
line N on its stdin it runs N times and prints {"times_ms": [...]}; at end of file it ends. For
kernelsmith this is `kernelsmith bench MODEL --inputs FILE.npz --stdio`.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
import zoo_prepare

DIGITS = common.ROOT / "examples" / "digits"

# Models that make similar demands, by the name of the family.
FAMILIES = {
    "dense": "alexnet vgg16 resnet18 resnet50 unet espcn_x3 style_transfer",
    "mobile": "mobilenet_v2 mobilenet_v3_small efficientnet_b0 shufflenet_v2_x1_0 squeezenet1_1 densenet121 "
              "convnext_tiny",
    "transformer": "bert_base distilbert_sst2 vit_b_16 swin_t gpt2 whisper_tiny_encoder t5_small_encoder",
    "decode": "gpt2_past llama_110m_past llama_110m_int4 whisper_tiny_decoder lstm_lm bilstm_sentiment "
              "gru_greedy_loop",
    "small": "yolo_n ssdlite320_mobilenet_v3_large deeplabv3_mobilenet_v3_large mnist_mlp mlp_autoencoder "
             "conv_autoencoder vae dcgan_generator",
    "int8": "resnet50_int8_qdq mobilenet_v2_int8_qdq bert_base_int8_dynamic",
}
# Models of `--start`, where none are named.
START_MODELS = "resnet50,bert_base,mobilenet_v2"


TRACT = common.ROOT / "benches" / "tract"
TRACT_PROGRAM = common.target_dir() / "tract" / "release" / "kernelsmith-bench-tract"

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


def build_tract():
    command = ["cargo", "build", "--release", "--manifest-path", TRACT / "Cargo.toml",
               "--target-dir", TRACT_PROGRAM.parent.parent]
    if subprocess.run(command).returncode != 0:
        print("tract can't be built here: going on without")


def tract_worker(model: str, inputs: str, threads: int):
    os.execv(TRACT_PROGRAM, [str(TRACT_PROGRAM), model, inputs, str(threads)])


WORKERS = {
    "ort": ort_worker,
    "openvino": lambda m, i, t: openvino_worker(m, i, t, "f32"),
    "openvino-default": lambda m, i, t: openvino_worker(m, i, t, None),
    "tract": tract_worker,
}


def installed_peers() -> list[str]:
    from importlib.util import find_spec

    found = [p for p, module in (("ort", "onnxruntime"), ("openvino", "openvino")) if find_spec(module)]
    return found + ["tract"] * TRACT_PROGRAM.exists()


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


def peer_argv(name: str, model: Path, inputs: Path, args) -> list:
    return [sys.executable, __file__, "--worker", name, model, inputs, args.threads]


def our_argv(name: str, model: Path, inputs: Path, args) -> list:
    return [args.program, "bench", model, "--inputs", inputs, "--stdio", "--backend", name.split(":")[1],
            "--threads", args.threads, *args.flags.split()]


def contest(model: Path, inputs: Path, args) -> dict:
    """Times of one model: {contestant: {...}}, with "error" in place of times where it failed."""
    result, ready = {}, []
    for name in args.contestants:
        if name in WORKERS:
            argv = peer_argv(name, model, inputs, args)
        else:
            argv = [*our_argv(name, model, inputs, args), "--cache", "off"]
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


# ---- starts ----


def peak_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) / 1024


def one_start(name: str, argv: list, timeout: float) -> dict:
    began = time.perf_counter()
    c = Contestant(name, argv, timeout)
    wall_ms = (time.perf_counter() - began) * 1e3
    try:
        c.turn(1)
        return {"ready_ms": c.compile_ms if name in WORKERS else wall_ms, "peak_mb": peak_mb(c.process.pid)}
    finally:
        c.close()


def starts(model: Path, inputs: Path, args) -> dict:
    """{contestant: {"ready_ms", "peak_mb"}}; kernelsmith takes part twice, with and without a warm cache."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="kernelsmith-start-") as tmp:
        for round_ in range(args.rounds):
            for name in args.contestants:
                try:
                    if name in WORKERS:
                        kinds = [(name, peer_argv(name, model, inputs, args))]
                    else:
                        cache = ["--cache", f"{tmp}/{round_}"]
                        argv = our_argv(name, model, inputs, args) + cache
                        kinds = [(f"{name} first", argv), (f"{name} second", argv)]
                    for kind, argv in kinds:
                        one = one_start(name if name in WORKERS else kind, argv, args.timeout)
                        found.setdefault(kind, []).append(one)
                except (RuntimeError, OSError) as e:
                    found.setdefault(name, []).append({"error": str(e)})
            shutil.rmtree(f"{tmp}/{round_}", ignore_errors=True)
    out = {}
    for kind, rounds in found.items():
        good = [r for r in rounds if "error" not in r]
        out[kind] = {k: statistics.median(r[k] for r in good) for k in good[0]} if good else rounds[0]
    return out


def print_starts(name: str, found: dict):
    for kind, t in found.items():
        cells = f"ready {t['ready_ms']:9.1f} ms   peak {t['peak_mb']:8.1f} MB" if "ready_ms" in t else t["error"]
        print(f"{name:20} {kind:26} {cells}", flush=True)


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


def ratio(times: dict, ours: str, peers: list[str]) -> float | None:
    """The fastest of `peers` over ours: above 1 we are faster."""
    known = [times[p]["median_ms"] for p in peers if "median_ms" in times.get(p, {})]
    mine = times.get(ours, {}).get("median_ms")
    return min(known) / mine if known and mine else None


def split(contestants: list[str]) -> tuple[list[str], list[str]]:
    return [c for c in contestants if c not in WORKERS], [c for c in contestants if c in WORKERS]


def print_row(name: str, times: dict, contestants: list[str]):
    ours, peers = split(contestants)
    cells = []
    for c in contestants:
        t = times.get(c, {})
        cells.append(f"{c} {t['median_ms']:.3f}" if "median_ms" in t else f"{c} -")
    for o in ours:
        label = f"{o} " if len(ours) > 1 else ""
        for p in peers:
            if (r := ratio(times, o, [p])) is not None:
                cells.append(f"{label}{p}/ours {r:.2f}")
        if len(peers) > 1 and (r := ratio(times, o, peers)) is not None:
            cells.append(f"{label}best {r:.2f}")
    print(f"{name:29} " + "  ".join(cells), flush=True)
    for c in contestants:
        if "error" in times.get(c, {}):
            print(f"    {c}: {times[c]['error'][:200]}", flush=True)
    if "error" in times:
        print(f"    {times['error'][:200]}", flush=True)


def summary(ratios: dict[str, float]) -> dict:
    """Of ratios by model."""
    worst = min(ratios, key=ratios.get)
    return {"geometric_mean": statistics.geometric_mean(ratios.values()), "models": len(ratios),
            "faster": sum(r > 1 for r in ratios.values()), "least": ratios[worst], "least_model": worst}


def summaries(results: dict, contestants: list[str]) -> dict:
    """By backend of ours: one summary for each peer, and one against the best peer for each family."""
    ours, peers = split(contestants)
    out = {}
    groups = {p: ([p], list(results)) for p in peers}
    if peers:
        groups |= {f: (peers, [m for m in models.split() if m in results]) for f, models in FAMILIES.items()}
        groups["all"] = (peers, list(results))
    for o in ours:
        for group, (against, models) in groups.items():
            known = {m: r for m in models if (r := ratio(results[m], o, against)) is not None}
            if known:
                out.setdefault(o, {})[group] = summary(known)
    return out


def print_summaries(found: dict):
    for ours, groups in found.items():
        for group, s in groups.items():
            against = f"{group}/ours" if group in WORKERS else f"{group}: best peer/ours"
            print(f"{ours}  {against:28} geometric mean {s['geometric_mean']:.2f} of {s['models']} models, "
                  f"faster on {s['faster']}, least {s['least']:.2f} ({s['least_model']})")


def plot(results: dict, contestants: list[str]) -> str:
    """An SVG: for each model a bar as long as the fastest peer's time over ours, the line at 1 being a draw."""
    from html import escape

    ours, peers = split(contestants)
    rows = [(m, ratio(t, ours[0], peers)) for m, t in results.items()] if ours and peers else []
    rows = sorted(((m, r) for m, r in rows if r is not None), key=lambda row: -row[1])
    scale, left, step = 160, 230, 18
    width, height = left + int(scale * max([r for _, r in rows] + [1.5])) + 60, 40 + step * len(rows)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>',
             f'<text x="{left}" y="16">fastest of {escape(", ".join(peers))} over {escape(" ".join(ours[:1]))}'
             ' (above 1: ours is faster)</text>']
    for i, (model, r) in enumerate(rows):
        y = 28 + step * i
        colour = "#2a7f62" if r >= 1 else "#b5493c"
        parts += [f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{escape(model)}</text>',
                  f'<rect x="{left}" y="{y}" width="{r * scale:.1f}" height="{step - 4}" fill="{colour}"/>',
                  f'<text x="{left + r * scale + 4:.1f}" y="{y + 11}">{r:.2f}</text>']
    parts += [f'<line x1="{left + scale}" y1="24" x2="{left + scale}" y2="{height - 8}" stroke="black"/>', "</svg>"]
    return "\n".join(parts) + "\n"


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        _, _, name, model, inputs, threads = sys.argv
        return WORKERS[name](model, inputs, int(threads))
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--bin", help="the kernelsmith binary (default: the newest built)")
    ap.add_argument("--cache", type=Path, default=common.target_dir() / "zoo")
    ap.add_argument("--models", help="names, separated by commas (default: all)")
    ap.add_argument("--families", help=f"in place of models; of {', '.join(FAMILIES)}")
    ap.add_argument("--start", action="store_true", help="measure starts and memory in place of runs")
    ap.add_argument("--flags", default="", help='more flags for kernelsmith: --flags="--math bf16"')
    ap.add_argument("--backend", help="ours, separated by commas (default: the first that features.sh tells)")
    ap.add_argument("--peers", help="separated by commas, or none (default: those installed)")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=7)
    ap.add_argument("--turn-s", type=float, default=0.3, help="how long a turn lasts, about")
    ap.add_argument("--timeout", type=float, default=300)
    ap.add_argument("--out", type=Path, help="default: benches/results/models.json")
    ap.add_argument("--build-tract", action="store_true", help="build the contestant tract first")
    args = ap.parse_args()
    if args.build_tract:
        build_tract()
    if args.families:
        unknown = [f for f in args.families.split(",") if f not in FAMILIES]
        if unknown:
            ap.error(f"no such family: {', '.join(unknown)}")
        args.models = ",".join(",".join(FAMILIES[f].split()) for f in args.families.split(","))
    if args.start and not args.models:
        args.models = START_MODELS
    args.program = common.find_program(args.bin)
    backends = args.backend.split(",") if args.backend else common.available_backends()[:1]
    peers = installed_peers() if args.peers is None else [p for p in args.peers.split(",") if p in WORKERS]
    args.contestants = [f"kernelsmith:{b}" for b in backends] + peers
    results = {}
    report = {"machine": common.machine(), "threads": args.threads, "rounds": args.rounds, "flags": args.flags}
    if args.start:
        for name, model, inputs in find_models(args):
            results[name] = starts(model, inputs, args)
            print_starts(name, results[name])
        common.write_json(args.out or common.ROOT / "benches" / "results" / "starts.json",
                          report | {"starts": results})
        return 0
    for name, model, inputs in find_models(args):
        results[name] = contest(model, inputs, args)
        print_row(name, results[name], args.contestants)
    found = summaries(results, args.contestants)
    print_summaries(found)
    out = args.out or common.ROOT / "benches" / "results" / "models.json"
    common.write_json(out, report | {"models": results, "ratios": found})
    out.with_suffix(".svg").write_text(plot(results, args.contestants))
    return 0


if __name__ == "__main__":
    sys.exit(main())
