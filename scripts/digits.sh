#!/usr/bin/env bash
# Classify the held-back digits of examples/digits with the given kernelsmith binary, once for
# each backend it was built with, and once with the kernels of a GPU, interpreted; and judge the answers.
#
#   scripts/digits.sh target/release/kernelsmith
set -euo pipefail
cd "$(dirname "$0")/.."

program=$1
out="${CARGO_TARGET_DIR:-target}/digits"
for backend in $(scripts/features.sh | tr ',' ' '); do
    case "$backend" in llvm | cranelift) ;; *) continue ;; esac
    echo "examples/digits with $backend:"
    rm -rf "$out"
    "$program" run examples/digits/digits.onnx --inputs examples/digits/samples.npz \
        --backend "$backend" --output-dir "$out"
    if command -v python3 >/dev/null; then
        python3 scripts/check_digits.py "$out/output_0.npy"
    else
        echo "skipped: judging the answers needs python3"
    fi
    echo "timing (milliseconds for all samples in one batch):"
    "$program" bench examples/digits/digits.onnx --inputs examples/digits/samples.npz \
        --backend "$backend" --seconds 0.5 | grep -E 'compile_ms|load_ms|median_ms|min_ms'
    echo
done
if [[ $(scripts/features.sh) == *cuda* ]]; then
    echo "examples/digits with --device ptx-interp:"
    rm -rf "$out"
    "$program" run examples/digits/digits.onnx --inputs examples/digits/samples.npz --cache off \
        --device ptx-interp --output-dir "$out"
    if command -v python3 >/dev/null; then
        python3 scripts/check_digits.py "$out/output_0.npy" | tail -n 1
    fi
fi
echo "next: $program run your.onnx    (says what the model wants; --random 0 makes inputs up)"
