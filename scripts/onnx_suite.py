#!/usr/bin/env python3
"""Write the backend tests of the ONNX standard as folders that `kernelsmith test-cases` reads.

    .venv/bin/python scripts/onnx_suite.py target/onnx-suite

The package `onnx` has its tests in three places: operators and small models as Python code that
builds them, models exported from PyTorch as files, and classic networks whose weights are made
by nodes of the graph ("light"). Each becomes

    GROUP/CASE/model.onnx
    GROUP/CASE/test_data_set_0/input_0.pb ... output_0.pb ...
    GROUP/CASE/data.json      {"rtol": ..., "atol": ...} where they are not 1e-3 and 1e-7

SUITE.json, written last, records what the suite was made of; where it says the same as before,
nothing is done. One version of the packages always gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto, numpy_helper

SEED = 1234
RTOL, ATOL = 1e-3, 1e-7  # what the standard's own runner assumes
STORED_GROUPS = ("simple", "pytorch-converted", "pytorch-operator")


def test_data() -> Path:
    return Path(onnx.__file__).parent / "backend" / "test" / "data"


def without_initializer(model: ModelProto) -> list[ValueInfoProto]:
    """The graph inputs that a caller has to feed."""
    known = {t.name for t in model.graph.initializer}
    return [vi for vi in model.graph.input if vi.name not in known]


# ---- one case ----


def encode(value, info: ValueInfoProto) -> bytes:
    """A value of the type that `info` declares, as the protobuf message of that type."""
    kind = info.type.WhichOneof("value")
    if kind == "tensor_type" and isinstance(value, TensorProto):
        named = TensorProto()
        named.CopyFrom(value)
        named.name = info.name
        return named.SerializeToString()
    if isinstance(value, TensorProto):
        value = numpy_helper.to_array(value)
    convert = {
        "tensor_type": lambda v, name: numpy_helper.from_array(np.asarray(v), name),
        "sequence_type": numpy_helper.from_list,
        "optional_type": numpy_helper.from_optional,
        "map_type": numpy_helper.from_dict,
    }[kind]
    return convert(value, info.name).SerializeToString()


def write_tolerances(folder: Path, rtol: float, atol: float):
    if (rtol, atol) != (RTOL, ATOL):
        (folder / "data.json").write_text(json.dumps({"rtol": rtol, "atol": atol}) + "\n")


def write_built(folder: Path, case):
    """A case that the package built in memory."""
    folder.mkdir(parents=True)
    graph = case.model.graph
    (folder / "model.onnx").write_bytes(case.model.SerializeToString(deterministic=True))
    for k, (inputs, outputs) in enumerate(case.data_sets):
        data = folder / f"test_data_set_{k}"
        data.mkdir()
        for prefix, values, infos in (("input", inputs, graph.input), ("output", outputs, graph.output)):
            for i, (value, info) in enumerate(zip(values, infos)):
                (data / f"{prefix}_{i}.pb").write_bytes(encode(value, info))
    write_tolerances(folder, case.rtol, case.atol)


def write_light(folder: Path, source: Path, rtol: float, atol: float):
    """A classic network: its input is a ramp from 0 to 1, its output lies beside it."""
    data = folder / "test_data_set_0"
    data.mkdir(parents=True)
    shutil.copyfile(source, folder / "model.onnx")
    for i, info in enumerate(without_initializer(onnx.load(str(source)))):
        shape = [max(d.dim_value, 1) for d in info.type.tensor_type.shape.dim]
        count = int(np.prod(shape))
        ramp = (np.arange(count).reshape(shape) / count).astype(np.float32)
        (data / f"input_{i}.pb").write_bytes(encode(ramp, info))
    for stored in source.parent.glob(f"{source.stem}_output_*.pb"):
        shutil.copyfile(stored, data / stored.name.removeprefix(f"{source.stem}_"))
    write_tolerances(folder, rtol, atol)


# ---- all cases ----


def built_cases():
    """(group, case) for everything that the package builds by running code."""
    from onnx.backend.test.case import model as model_cases
    from onnx.backend.test.loader import load_node_model_tests

    np.random.seed(SEED)  # the package draws its inputs from numpy's global generator
    for case in load_node_model_tests():
        yield "node", case
    for case in model_cases.collect_testcases():
        if case.model is not None:
            yield case.kind, case


def write_suite(dest: Path) -> tuple[Counter, list[str]]:
    counts, left_out = Counter(), []
    for group, case in built_cases():
        folder = dest / group / case.name
        try:
            write_built(folder, case)
            counts[group] += 1
        except (KeyError, TypeError, ValueError, NotImplementedError) as e:
            left_out.append(f"{group}/{case.name}: {e}")
            shutil.rmtree(folder, ignore_errors=True)
    for group in STORED_GROUPS:
        for source in sorted((test_data() / group).glob("*/model.onnx")):
            folder = dest / group / source.parent.name
            if not folder.exists():
                shutil.copytree(source.parent, folder)
                counts[group] += 1
    for meta_path in sorted((test_data() / "real").glob("*/data.json")):
        meta = json.loads(meta_path.read_text())
        source = test_data() / "light" / Path(meta["url"]).name
        if source.is_file():
            write_light(dest / "light" / meta_path.parent.name, source,
                        meta.get("rtol", RTOL), meta.get("atol", ATOL))
            counts["light"] += 1
        else:
            left_out.append(f"light/{meta_path.parent.name}: not in the package")
    return counts, left_out


def recipe() -> dict:
    """What the bytes of the suite depend on."""
    script = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    return {"onnx": onnx.__version__, "numpy": np.__version__, "script": script}


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("dest", type=Path)
    args = ap.parse_args()
    record = args.dest / "SUITE.json"
    if record.is_file() and json.loads(record.read_text())["made_of"] == recipe():
        return 0
    if args.dest.exists():
        if any(args.dest.iterdir()) and not record.is_file() and not (args.dest / "node").is_dir():
            sys.exit(f"{args.dest} holds something else; not replacing it")
        shutil.rmtree(args.dest)
    args.dest.mkdir(parents=True)
    warnings.simplefilter("ignore")  # the package divides by zero and overflows on purpose
    counts, left_out = write_suite(args.dest)
    record.write_text(json.dumps({"made_of": recipe(), "cases": counts, "left_out": left_out},
                                 indent=1, sort_keys=True) + "\n")
    print(f"{sum(counts.values())} cases of onnx {onnx.__version__} in {args.dest}: "
          + ", ".join(f"{n} {group}" for group, n in sorted(counts.items())))
    for line in left_out:
        print("left out:", line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
