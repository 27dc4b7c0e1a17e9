#!/usr/bin/env python3
"""Make the model zoo ready: complete models, inputs, and ONNX Runtime's outputs for them.

    .venv/bin/python scripts/zoo_prepare.py --cache target/zoo [--models a,b,c]

The zoo itself (models without weights, index.json, hydrate.py) is not part of this repository:
KS_SHARED names the folder that holds `models/`, and `../shared` is tried otherwise. Written to
the cache, for each model NAME:

    NAME.onnx  NAME.inputs.npz  NAME.ref.npz           at the suggested sizes
    NAME.alt.inputs.npz  NAME.alt.ref.npz              at other sizes, where index.json has some
    NAME.ref.json                                      the kind of arithmetic, and how much two
                                                       modes of ONNX Runtime differ

References come from ONNX Runtime with its graph optimisations off: node by node, as the graph
says. A bfloat16 model is computed in float32 from the same weights, since ONNX Runtime lacks most
bfloat16 operators on CPUs. What exists already is left alone. Needs requirements-peers.txt.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import common


def load_hydrate(models: Path):
    spec = importlib.util.spec_from_file_location("hydrate", models / "hydrate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_index(models: Path) -> list[dict]:
    return json.loads((models / "index.json").read_text())["models"]


# ---- what kind of arithmetic a model uses ----


def arithmetic(entry: dict) -> str:
    """f32, f16, bf16, int8 or int4: the key of the tolerances in zoo.py."""
    ops = " ".join(entry["ops"])
    types = {t["dtype"] for t in entry["inputs"] + entry["outputs"]}
    if "bfloat16" in types:
        return "bf16"
    if "float16" in types:
        return "f16"
    if any(word in ops for word in ("QLinear", "QuantizeLinear", "MatMulInteger", "ConvInteger")):
        return "int8"
    return "int4" if "NBits" in ops else "f32"


# ---- bfloat16 graphs in float32 ----


def widen_bfloat16(model):
    """The same graph with float32 wherever it says bfloat16."""
    from onnx import AttributeProto, TensorProto

    def tensor(t):
        if t.data_type == TensorProto.BFLOAT16:
            bits = np.frombuffer(t.raw_data, np.uint16) if t.raw_data else np.array(t.int32_data, np.uint16)
            t.ClearField("int32_data")
            t.raw_data = common.bf16_to_f32(bits).tobytes()
            t.data_type = TensorProto.FLOAT

    def value_info(v):
        kind = v.type.tensor_type
        if kind.elem_type == TensorProto.BFLOAT16:
            kind.elem_type = TensorProto.FLOAT

    def nodes(where):
        for node in where:
            for a in node.attribute:
                if a.type == AttributeProto.TENSOR:
                    tensor(a.t)
                elif a.type == AttributeProto.GRAPH:
                    graph(a.g)
                elif a.type == AttributeProto.INT and a.i == TensorProto.BFLOAT16:
                    if a.name in ("to", "dtype", "output_dtype", "stash_type"):
                        a.i = TensorProto.FLOAT

    def graph(g):
        for t in g.initializer:
            tensor(t)
        for v in [*g.input, *g.output, *g.value_info]:
            value_info(v)
        nodes(g.node)

    graph(model.graph)
    for f in model.functions:
        nodes(f.node)
    return model


# ---- references ----


def ort_outputs(model, feeds: dict, optimised: bool) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def make_references(path: Path, entry: dict, sizes: list[str]):
    """Write the references of one model (runs in a process of its own, for its memory's sake)."""
    name, folder = entry["name"], path.parent
    kind = arithmetic(entry)
    model = str(path)
    if kind == "bf16":
        import onnx

        model = widen_bfloat16(onnx.load(model)).SerializeToString()
    spread = {}
    for size in sizes:
        feeds = dict(np.load(folder / f"{name}{size}.inputs.npz"))
        outputs = ort_outputs(model, feeds, optimised=False)
        again = ort_outputs(model, feeds, optimised=True)
        free = common.Tolerance(np.inf, np.inf)
        spread["default" if not size else "alt"] = max(
            common.compare(a, b, free).max_scaled for a, b in zip(again, outputs))
        np.savez(folder / f"{name}{size}.ref.npz", **{f"output_{i}": x for i, x in enumerate(outputs)})
    common.write_json(folder / f"{name}.ref.json", {"arithmetic": kind, "ort_spread": spread})


def prepare(cache: Path, models: Path, names: list[str] | None, say=print) -> list[str]:
    """Fill the cache; returns the names that could not be made ready."""
    hydrate = load_hydrate(models)
    entries = [e for e in read_index(models) if names is None or e["name"] in names]
    cache.mkdir(parents=True, exist_ok=True)
    failed = []
    for entry in sorted(entries, key=lambda e: e["params"]):
        name = entry["name"]
        path = cache / f"{name}.onnx"
        if not (cache / f"{name}.inputs.npz").is_file():
            hydrate.save(hydrate.hydrate_model(str(models), name), str(path))
            np.savez(cache / f"{name}.inputs.npz", **hydrate.sample_inputs(entry))
        sizes = [""]
        if entry.get("dims_alt"):
            sizes.append(".alt")
            if not (cache / f"{name}.alt.inputs.npz").is_file():
                feeds = hydrate.sample_inputs(entry, dims=entry["dims_alt"])
                np.savez(cache / f"{name}.alt.inputs.npz", **feeds)
        if (cache / f"{name}.ref.json").is_file():
            continue
        done = subprocess.run([sys.executable, __file__, "--one", path, "--sizes", ",".join(sizes)],
                              input=json.dumps(entry), text=True, capture_output=True)
        if done.returncode == 0:
            say(f"{name}: ready", flush=True)
        else:
            failed.append(name)
            say(f"{name}: no reference: {common.last_line(done.stderr)}", flush=True)
    return failed


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--cache", type=Path, default=common.target_dir() / "zoo")
    ap.add_argument("--models", help="names, separated by commas (default: all)")
    ap.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    ap.add_argument("--sizes", default="", help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.one:
        make_references(args.one, json.load(sys.stdin), args.sizes.split(","))
        return 0
    shared = common.shared_dir()
    if shared is None:
        print("skipped: no model zoo here (set KS_SHARED to the folder that holds models/index.json)")
        return 0
    return 1 if prepare(args.cache, shared / "models", args.models and args.models.split(",")) else 0


if __name__ == "__main__":
    sys.exit(main())
