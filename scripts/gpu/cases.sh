#!/usr/bin/env bash
# Write the cases of the tests of PTX for a device: instruction forms, kernels by hand, emitted kernels.
# usage: scripts/gpu/cases.sh cases.jsonl.xz
# scripts/gpu/golden.py and scripts/gpu-check --cases repeat them. No GPU is needed here.
set -euo pipefail
out=$(realpath "$1")
cd "$(dirname "$0")/../.."

directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
# groups are named by the threads of tests; mutants are none of a device's business
KS_DEVICE_CASES=$directory cargo test --quiet --package kernelsmith-ptx-interp --test forms --test kernels \
    --package kernelsmith-codegen --test emitters -- --skip mutants --test-threads 2
find "$directory" -name '*.json' | sort | xargs cat | xz --threads 0 >"$out"
echo "$out: $(find "$directory" -name '*.json' | wc -l) texts, $(wc -c <"$out") bytes"
