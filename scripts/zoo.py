#!/usr/bin/env python3
"""Run the model zoo through `kernelsmith run` and compare with ONNX Runtime.

    .venv/bin/python scripts/zoo.py --cache target/zoo [--models a,b] [--backend llvm,cranelift]

A tool for developers: the zoo is not part of this repository (see zoo_prepare.py, which this runs
first). Each run is a process of its own with a limit on time and memory. The trained models, which
come with their own data sets and tolerances, are run too; their names begin with `trained/`.
Writes a table to --report FILE.md, and everything to FILE.json beside it.

Exit status: 0; 1 where a model gave a wrong result or ended in anything but success or a refusal;
with --against OLD.json instead: 1 where a model that was right there is not now.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import common
import zoo_prepare
from common import Tolerance

# By the kind of arithmetic. float16 and bfloat16 are rounded after every operator by the reference,
# and less often by fused kernels. In quantised models one value next to a rounding boundary moves
# a whole step, and the step is then seen by all that follows: how far two modes of ONNX Runtime
# itself are apart is measured for each model, and half as much again is allowed.
TOLERANCES = {
    "f32": Tolerance(rtol=1e-3, scaled=1e-4),
    "int4": Tolerance(rtol=1e-3, scaled=1e-3),
    "f16": Tolerance(rtol=1e-2, scaled=1e-2),
    "bf16": Tolerance(rtol=3e-2, scaled=3e-2),
    "int8": Tolerance(rtol=2e-2, scaled=2e-2),
}
SPREAD_ALLOWED = 1.5


@dataclass
class Case:
    name: str
    size: str  # "default" or "alt": which values the symbolic dimensions take
    model: Path
    inputs: Path
    wanted: list[np.ndarray]
    kind: str  # of arithmetic
    tolerance: Tolerance


# ---- cases ----


def tolerance_of(kind: str, spread: float) -> Tolerance:
    base = TOLERANCES[kind]
    return Tolerance(base.rtol, max(base.scaled, SPREAD_ALLOWED * spread))


def zoo_cases(cache: Path, entries: list[dict], sizes: list[str]):
    for entry in entries:
        name = entry["name"]
        facts_path = cache / f"{name}.ref.json"
        if not facts_path.is_file():
            continue
        facts = json.loads(facts_path.read_text())
        for size in sizes:
            stem = name if size == "default" else f"{name}.{size}"
            ref = cache / f"{stem}.ref.npz"
            if not ref.is_file():
                continue
            yield lambda n=name, s=size, st=stem, r=ref, f=facts: Case(
                n, s, cache / f"{n}.onnx", cache / f"{st}.inputs.npz", outputs_of(r),
                f["arithmetic"], tolerance_of(f["arithmetic"], f["ort_spread"][s]))


def outputs_of(path: Path) -> list[np.ndarray]:
    with np.load(path) as z:
        return [z[f"output_{i}"] for i in range(len(z.files))]


def trained_cases(folder: Path, wanted: set[str] | None, work: Path):
    import onnx

    for model_path in sorted(folder.glob("*/model.onnx")):
        name = f"trained/{model_path.parent.name}"
        if wanted is not None and name not in wanted:
            continue
        model = onnx.load(str(model_path), load_external_data=False)
        known = {t.name for t in model.graph.initializer}
        infos = [vi for vi in model.graph.input if vi.name not in known]
        meta_path = model_path.with_name("data.json")
        meta = json.loads(meta_path.read_text()) if meta_path.is_file() else {}
        tol = Tolerance(meta.get("rtol", 1e-3), 0.0, meta.get("atol", 1e-7))
        half = any(vi.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for vi in infos)
        for data in sorted(model_path.parent.glob("test_data_set_*")):
            inputs = work / f"{model_path.parent.name}-{data.name}.npz"
            values = {vi.name: read_pb(data / f"input_{i}.pb") for i, vi in enumerate(infos)
                      if (data / f"input_{i}.pb").is_file()}
            np.savez(inputs, **values)
            outputs = [read_pb(data / f"output_{i}.pb") for i in range(len(model.graph.output))]
            size = "default" if data.name.endswith("_0") else f"set {data.name.rsplit('_', 1)[1]}"
            yield lambda n=name, s=size, m=model_path, i=inputs, o=outputs, k="f16" if half else "f32", t=tol: Case(
                n, s, m, i, o, k, t)


def read_pb(path: Path) -> np.ndarray:
    import onnx

    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes()))


# ---- running one ----


def run_case(case: Case, backend: str, args) -> dict:
    row = {"model": case.name, "size": case.size, "backend": backend, "arithmetic": case.kind,
           "rtol": case.tolerance.rtol, "scaled": case.tolerance.scaled, "detail": ""}
    folder = Path(tempfile.mkdtemp(prefix="ks-zoo-", dir=args.work))
    out = folder / "out"
    argv = [args.program, "run", case.model, "--inputs", case.inputs, "--output-dir", out, "--cache", "off",
            "--backend", backend]
    if args.threads:
        argv += ["--threads", args.threads]
    if args.json_supported:
        argv.append("--json")
    done = common.run_limited(argv, args.timeout, args.memory_mb, folder)
    row |= {"seconds": round(done.seconds, 3), "peak_mb": round(done.peak_mb)}
    row |= times_said(done.stdout)
    if done.outcome() == "ok":
        row |= judge(out, case)
    else:
        status = {"unsupported": "refused", "timeout": "timeout", "memory": "memory"}
        row["status"] = status.get(done.outcome(), "error")
        row["detail"] = common.first_error(done.stderr)
        if row["status"] == "error":
            row["detail"] = f"{done.outcome()}: {row['detail']}"
    shutil.rmtree(folder, ignore_errors=True)
    return row


def times_said(stdout: str) -> dict:
    """compile_ms and run_ms from what `run --json` prints."""
    for line in reversed(stdout.splitlines()):
        if line.startswith("{"):
            try:
                said = json.loads(line)
            except ValueError:
                continue
            return {k: said[k] for k in ("compile_ms", "run_ms") if k in said}
    return {}


def judge(out: Path, case: Case) -> dict:
    worst, details = 0.0, []
    for i, want in enumerate(case.wanted):
        path = out / f"output_{i}.npy"
        if not path.is_file():
            details.append(f"output {i} was not written")
            continue
        got = np.load(path)
        if case.kind == "bf16" and got.dtype == np.uint16 and want.dtype == np.float32:
            got = common.bf16_to_f32(got)
        d = common.compare(got, want, case.tolerance)
        worst = max(worst, d.max_scaled)
        if not d.ok:
            details.append(f"output {i}: {d.detail}")
    return {"status": "wrong" if details else "ok", "max_error": worst, "detail": "; ".join(details)[:400]}


# ---- telling ----


def number(x, digits=1) -> str:
    return "" if x is None else f"{x:.{digits}f}"


def totals(rows: list[dict], backends: list[str]) -> list[str]:
    counts = {b: Counter(r["status"] for r in rows if r["backend"] == b) for b in backends}
    return [f"* {b}: " + ", ".join(f"{n} {s}" for s, n in counts[b].most_common()) for b in backends]


def markdown(rows: list[dict], backends: list[str]) -> str:
    head = ["model", "size", "arithmetic"]
    for b in backends:
        head += [b, "max error", "compile ms", "run ms", "peak MB"]
    lines = ["# Model zoo", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    by_case: dict[tuple, dict] = {}
    for r in rows:
        by_case.setdefault((r["model"], r["size"], r["arithmetic"]), {})[r["backend"]] = r
    notes = []
    for key, per in by_case.items():
        cells = list(key)
        for b in backends:
            r = per.get(b, {})
            error = r.get("max_error")
            cells += [r.get("status", ""), "" if error is None else f"{error:.1e}",
                      number(r.get("compile_ms")), number(r.get("run_ms"), 3), number(r.get("peak_mb"), 0)]
            if r.get("detail"):
                notes.append(f"* {r['model']} ({r['size']}, {b}): {r['status']}: {r['detail']}")
        lines.append("| " + " | ".join(cells) + " |")
    text = ["", "Totals:", "", *totals(rows, backends), "",
            "`max error` is the largest difference from ONNX Runtime over the largest magnitude of that output.",
            "A result is right where every element has |got - want| <= rtol |want| + scaled max|want|:", "",
            "| arithmetic | rtol | scaled |", "|---|---|---|",
            *(f"| {k} | {t.rtol:g} | {t.scaled:g} |" for k, t in TOLERANCES.items()), "",
            f"`scaled` is raised to {SPREAD_ALLOWED:g} times the distance between ONNX Runtime with and without",
            "its graph optimisations where that is more. Trained models have tolerances of their own.", ""]
    return "\n".join(lines + text + (["Details:", "", *notes, ""] if notes else []))


def regressions(rows: list[dict], old_path: Path) -> list[str]:
    def key(r):
        return f"{r['model']} ({r['size']}, {r['backend']})"

    now = {key(r): r["status"] for r in rows}
    old = json.loads(old_path.read_text())["rows"]
    return [f"{key(r)}: {now[key(r)]}" for r in old
            if r["status"] == "ok" and now.get(key(r), "ok") != "ok"]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--bin", help="the kernelsmith binary (default: the newest built)")
    ap.add_argument("--cache", type=Path, default=common.target_dir() / "zoo")
    ap.add_argument("--models", help="names, separated by commas (default: all, trained/ ones included)")
    ap.add_argument("--sizes", default="default", help="default, alt, or default,alt")
    ap.add_argument("--backend", help="separated by commas (default: all that features.sh tells)")
    ap.add_argument("--threads", help="given to kernelsmith run")
    ap.add_argument("--jobs", type=int, default=1)
    ap.add_argument("--timeout", type=float, default=300)
    ap.add_argument("--memory-mb", type=int, default=12000)
    ap.add_argument("--report", type=Path, default=common.target_dir() / "zoo-report.md")
    ap.add_argument("--against", type=Path, metavar="OLD.json")
    args = ap.parse_args()
    shared = common.shared_dir()
    if shared is None:
        print("skipped: no model zoo here (set KS_SHARED to the folder that holds models/index.json)")
        return 0
    args.program = common.find_program(args.bin)
    backends = args.backend.split(",") if args.backend else common.available_backends()
    names = set(args.models.split(",")) if args.models else None
    entries = [e for e in zoo_prepare.read_index(shared / "models") if names is None or e["name"] in names]
    if entries:
        zoo_prepare.prepare(args.cache, shared / "models", [e["name"] for e in entries])
    with tempfile.TemporaryDirectory(prefix="ks-zoo-") as tmp:
        args.work = tmp
        probe = common.run_limited([args.program, "run", "--help"], 20, args.memory_mb, Path(tmp))
        args.json_supported = "--json" in probe.stdout
        cases = list(zoo_cases(args.cache, entries, args.sizes.split(",")))
        cases += trained_cases(shared / "models" / "trained", names, Path(tmp))
        if not cases:
            print("no such model")
            return 2

        def one(work):
            make, backend = work
            case = make()
            row = run_case(case, backend, args)
            error = f" error {row['max_error']:.1e}" if "max_error" in row else ""
            print(f"{case.name} ({case.size}, {backend}): {row['status']} in {row['seconds']:.1f} s"
                  f"{error} {row['detail'][:160]}".rstrip(), flush=True)
            return row

        with ThreadPoolExecutor(args.jobs) as pool:
            rows = list(pool.map(one, [(c, b) for c in cases for b in backends]))
    text = markdown(rows, backends)
    args.report.parent.mkdir(parents=True, exist_ok=True)
    args.report.write_text(text)
    common.write_json(args.report.with_suffix(".json"), {"machine": common.machine(), "rows": rows})
    print(f"written: {args.report}", *totals(rows, backends), sep="\n")
    if args.against:
        worse = regressions(rows, args.against)
        print(*(f"WORSE {w}" for w in worse), sep="\n")
        return 1 if worse else 0
    return 0 if all(r["status"] in ("ok", "refused") for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
