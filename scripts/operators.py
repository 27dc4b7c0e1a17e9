#!/usr/bin/env python3
"""Write docs/operators.md: every operator that the importer knows, and what the ONNX suite says of it.

    .venv/bin/python scripts/operators.py --suite target/onnx-suite

The operators are those of `kernelsmith operators --json`. The cases of an operator are those whose model holds a
node of it (inside subgraphs and functions too); whether they pass on a backend is what tests/onnx-passing.txt says.
A test of the repository compares the table's operators with the registry.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import common
import conformance

TARGET = common.ROOT / "docs" / "operators.md"
HEAD = """\
# Operators

Written by `scripts/operators.py` from the importer's registry and the results of the ONNX suite
(`tests/onnx-passing.txt`); do not edit. *Since*: the first operator-set version whose meaning is implemented; all later
ones up to 28 are. *Cases*: those of the suite whose model holds the operator. A dash: the suite has none, and the
tests of this repository are what checks it (`frontend/tests/operators`, `tests/python/test_contrib.py`).

Operators of a model's own functions (FunctionProto) are expanded and need no row here. Maps are no tensors: `ZipMap`
gives the tensor of its scores, and `CastMap` and `DictVectorizer`, which take maps, are not there.
"""


def operators_of(graph, out):
    for node in graph.node:
        out.add(((node.domain or "ai.onnx"), node.op_type))
        for a in node.attribute:
            if a.HasField("g"):
                operators_of(a.g, out)
            for g in a.graphs:
                operators_of(g, out)


def cases(suite: Path):
    """Case name -> operators of its model."""
    import onnx

    for path in sorted(suite.glob("*/*/model.onnx")):
        model = onnx.load(path, load_external_data=False)
        out = set()
        operators_of(model.graph, out)
        for f in model.functions:
            operators_of(f, out)
        yield f"{path.parent.parent.name}/{path.parent.name}", out


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--bin", help="the kernelsmith binary (default: the newest built)")
    ap.add_argument("--suite", type=Path, default=common.target_dir() / "onnx-suite")
    ap.add_argument("--out", type=Path, default=TARGET)
    args = ap.parse_args()
    listed = subprocess.run([common.find_program(args.bin), "operators", "--json"], capture_output=True, text=True,
                            check=True)
    rows = json.loads(listed.stdout)
    passing = {}
    for line in conformance.DEFAULT_LIST.read_text().splitlines():
        name, *backends = line.split("#")[0].split() or [""]
        if name:
            passing[name] = set(backends)
    count, good = defaultdict(int), defaultdict(lambda: defaultdict(int))
    total = 0
    for name, operators in cases(args.suite):
        total += 1
        for op in operators:
            count[op] += 1
            for backend in passing.get(name, ()):
                good[backend][op] += 1
    if not total:
        sys.exit(f"no cases in {args.suite}: make suite writes them")
    backends = [b for b in common.BACKENDS if b in good]
    text = [HEAD]
    held = {b: sum(b in p for p in passing.values()) for b in backends}
    text.append("Of %d cases pass: %s.\n" % (total, ", ".join(f"{held[b]} with {b}" for b in backends)))
    domains = sorted({r["domain"] for r in rows})
    for domain in domains:
        text.append(f"## {domain}\n")
        text.append("| operator | since | cases | " + " | ".join(backends) + " |")
        text.append("|---|---|---|" + "---|" * len(backends))
        for r in (r for r in rows if r["domain"] == domain):
            op = (domain, r["name"])
            n = count[op]
            cells = [str(good[b][op]) if n else "-" for b in backends]
            text.append(f"| {r['name']} | {r['since']} | {n or '-'} | " + " | ".join(cells) + " |")
        text.append("")
    known = {(r["domain"], r["name"]) for r in rows}
    missing = sorted(op for op in count if op not in known)
    if missing:
        text.append("## Only as functions of a model, or not known\n")
        text += [f"* {name} ({domain}): in {count[(domain, name)]} cases" for domain, name in missing]
        text.append("")
    args.out.write_text("\n".join(text))
    print(f"{args.out}: {len(rows)} operators, {total} cases")


if __name__ == "__main__":
    main()
