#!/usr/bin/env python3
"""Break real models in the ways that real models are broken, and show what `kernelsmith check` says.

    .venv/bin/python scripts/break_models.py --cache ZOO --out DIR [--bin PROGRAM] [--models a,b]

Writes DIR/MODEL.KIND.onnx and DIR/MODEL.KIND.txt, the report, for each model and each kind of damage that applies to it.
Fails where a report does not name every damaged node, or where what --extract writes for a problem no longer shows it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import common

TRACE = '''File "/home/user/net/model.py", line {line}, in forward
    x = self.layer{line}(x)
'''


def note(node, line):
    """What torch.onnx writes about where a node came from."""
    p = node.metadata_props.add()
    p.key, p.value = "pkg.torch.onnx.stack_trace", TRACE.format(line=line)


def custom_operators(model):
    """Activations of a private domain, as a framework exports operators of its own."""
    hit = [n for n in model.graph.node if n.op_type in ("Relu", "Erf", "Sigmoid", "Clip")][:3]
    for i, n in enumerate(hit):
        n.op_type, n.domain = f"Fancy{n.op_type}", "com.example"
        note(n, 40 + i)
    if hit:
        o = model.opset_import.add()
        o.domain, o.version = "com.example", 1
    return [n.name for n in hit]


def wrong_axis(model):
    """Axes and kernels that do not fit, as hand edits leave them."""
    hit = []
    for n in model.graph.node:
        for a in n.attribute:
            if n.op_type in ("Softmax", "Concat", "Flatten") and a.name == "axis":
                a.i = 9
                hit.append(n.name)
                note(n, 60 + len(hit))
            elif n.op_type == "Conv" and a.name == "group" and len(hit) < 2:
                a.i = 7
                hit.append(n.name)
                note(n, 60 + len(hit))
        if len(hit) == 3:
            break
    return hit


def lost_value(model):
    """A node cut away whose result others still use, and an old operator-set version."""
    nodes = list(model.graph.node)
    at = len(nodes) // 2
    gone = nodes[at]
    users = [n.name for n in nodes[at + 1:] if any(o in n.input for o in gone.output)]
    del model.graph.node[at]
    # nobody declares what is not there
    for info in [i for i in model.graph.value_info if i.name in gone.output]:
        model.graph.value_info.remove(info)
    return users


KINDS = {"custom-operators": custom_operators, "wrong-axis": wrong_axis, "lost-value": lost_value}


def check(program, path, *extra):
    done = subprocess.run([str(program), "check", str(path), *extra], capture_output=True, text=True)
    return done.stdout


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--bin")
    ap.add_argument("--cache", type=Path, required=True, help="folder with NAME.onnx")
    ap.add_argument("--out", type=Path, required=True)
    ap.add_argument("--models", default="resnet18,bert_base,mobilenet_v2")
    args = ap.parse_args()
    import onnx

    program = common.find_program(args.bin)
    args.out.mkdir(parents=True, exist_ok=True)
    failures = 0
    for name in args.models.split(","):
        for kind, damage in KINDS.items():
            # with declared types behind a damaged node everything else is checked too
            model = onnx.shape_inference.infer_shapes(onnx.load(args.cache / f"{name}.onnx"))
            for i, n in enumerate(model.graph.node):
                n.name = n.name or f"{n.op_type}_{i}"
            nodes = damage(model)
            if not nodes:
                continue
            path = args.out / f"{name}.{kind}.onnx"
            onnx.save(model, path)
            repro = args.out / f"{name}.{kind}"
            report = check(program, path, "--extract", str(repro))
            path.with_suffix(".txt").write_text(report)
            problems = json.loads(check(program, path, "--json"))["problems"]
            missed = [n for n in nodes if not any(p["node"] == n for p in problems)]
            lost = []
            for file in sorted(repro.glob("*.onnx")):
                inside = json.loads(check(program, file, "--json"))["problems"]
                whole = problems[int(file.name[:2])]
                if whole["code"] not in [p["code"] for p in inside]:
                    lost.append(file.name)
            failures += bool(missed or lost)
            print(f"{name} {kind}: {len(nodes)} damaged, {len(problems)} reported"
                  + (f", missed {missed}" if missed else "") + (f", not shown again by {lost}" if lost else ""))
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
