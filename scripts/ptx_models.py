#!/usr/bin/env python3
"""Assembles every PTX kernel of models with ptxas, and fails on what is rejected, spills, or draws advice (C75xx, C76xx).

usage: scripts/ptx_models.py DIR [MODEL ...] [--bin target/release/kernelsmith] [--arch sm_80 --arch sm_90a] [--json FILE]
DIR holds hydrated models (MODEL.onnx); without MODEL the twenty below. Kernels are emitted by `inspect --stage ptx`,
equal texts are assembled once, many entries to a file. ptxas is looked for as the tests do: KERNELSMITH_PTXAS,
.venv/ptxas/bin (scripts/ptxas.sh), the path; without it the script says that it is skipped.
"""

import argparse
import collections
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

MODELS = """mnist_mlp mlp_autoencoder conv_autoencoder squeezenet1_1 resnet18 mobilenet_v2 shufflenet_v2_x1_0 efficientnet_b0
convnext_tiny densenet121 bert_base distilbert_sst2 gpt2 vit_b_16 swin_t t5_small_encoder whisper_tiny_encoder lstm_lm
bilstm_sentiment yolo_n""".split()
HEADER = ".version 7.0\n.target sm_80\n.address_size 64\n"
ENTRY = re.compile(r"^\.visible \.entry (\w+)\(.*?^\}$", re.M | re.S)
# entries of one call of ptxas: enough to hide its start, few enough for its memory
BATCH = 40


def find_ptxas():
    here = pathlib.Path(__file__).resolve().parent.parent / ".venv/ptxas/bin/ptxas"
    named = os.environ.get("KERNELSMITH_PTXAS")
    return next((str(p) for p in (named, here, shutil.which("ptxas")) if p and os.path.isfile(p)), None)


def kernels(binary, path):
    """{text without its name: name} of a model, and how many there were."""
    run = subprocess.run([binary, "inspect", path, "--stage", "ptx"], capture_output=True, text=True, check=False)
    if run.returncode:
        sys.exit(f"{path}: {run.stderr.strip()}")
    found = {}
    count = 0
    for entry in ENTRY.finditer(run.stdout):
        count += 1
        body = entry[0].replace(f".entry {entry[1]}(", ".entry NAME(", 1)
        found.setdefault(body, entry[1])
    return found, count


def assemble(ptxas, arch, batch, folder):
    """Registers and fault by key of each entry of a batch."""
    source = pathlib.Path(folder, "batch.ptx")
    source.write_text(HEADER + "\n".join(text.replace("NAME", key, 1) for key, text in batch.items()))
    command = [ptxas, f"-arch={arch}", "-v", "-o", str(source.with_suffix(".cubin")), str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    said = run.stderr + run.stdout
    results = {}
    key = None
    for line in said.splitlines():
        if named := re.search(r"Function properties for (k_\w+)|entry function '(k_\w+)'", line):
            key = named[1] or named[2]
        entry = results.setdefault(key, {"registers": 0, "fault": None})
        if registers := re.search(r"Used (\d+) registers", line):
            entry["registers"] = int(registers[1])
        spilled = "bytes spill stores" in line and " 0 bytes spill stores" not in line
        if spilled or re.search(r"\(C7[56]\d\d\)", line):
            entry["fault"] = line.strip()
    if run.returncode:
        if len(batch) > 1:
            return {k: assemble(ptxas, arch, {k: t}, folder)[k] for k, t in batch.items()}
        return {k: {"registers": 0, "fault": said.strip()} for k in batch}
    if missing := [k for k in batch if results.get(k, {}).get("registers", 0) == 0]:
        sys.exit(f"ptxas said nothing about {missing}:\n{said}")
    return results


def measures(text):
    """Static counts of a kernel's text: instructions, loads, FMAs, accesses of 16 bytes."""
    lines = [l for l in text.splitlines() if l.endswith(";") and not l.lstrip().startswith((".reg", ".param"))]
    count = lambda pattern: sum(1 for l in lines if re.search(pattern, l))
    return {"instructions": len(lines), "loads": count(r"\bld\.global"), "stores": count(r"\bst\.global"),
            "fma": count(r"\bfma\.rn"), "vector accesses": count(r"\b(ld|st)\.global\.v[24]")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir")
    parser.add_argument("models", nargs="*")
    parser.add_argument("--bin", default="target/release/kernelsmith")
    parser.add_argument("--arch", action="append")
    parser.add_argument("--json")
    args = parser.parse_args()
    ptxas = find_ptxas()
    if ptxas is None:
        print("skipped: no ptxas (scripts/ptxas.sh installs it)")
        return
    unique = {}
    used = collections.defaultdict(list)
    for model in args.models or MODELS:
        found, count = kernels(args.bin, os.path.join(args.dir, model + ".onnx"))
        for body, name in found.items():
            key = "k_" + hashlib.sha256(body.encode()).hexdigest()[:16]
            unique[key] = (name, body)
            used[model].append(key)
        print(f"{model}: {count} kernels, {len(found)} distinct", flush=True)
    print(f"{len(unique)} distinct kernels", flush=True)
    report = {k: {"name": n, **measures(b)} for k, (n, b) in unique.items()}
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for arch in args.arch or ["sm_80", "sm_90a"]:
            most = 0
            keys = list(unique)
            for i in range(0, len(keys), BATCH):
                batch = {k: unique[k][1] for k in keys[i:i + BATCH]}
                for key, result in assemble(ptxas, arch, batch, folder).items():
                    if key not in unique:
                        continue
                    report[key][arch] = result
                    most = max(most, result["registers"])
                    if result["fault"]:
                        failed += 1
                        models = [m for m in used if key in used[m]]
                        print(f"FAIL {arch} {unique[key][0]} ({key}, {', '.join(models[:3])}): {result['fault']}")
            print(f"{arch}: {len(keys)} kernels, at most {most} registers", flush=True)
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(report, indent=1))
    print(f"{failed} faults")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
