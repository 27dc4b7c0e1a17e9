#!/usr/bin/env bash
# The conformance check: generate the ONNX suite where it is missing or old, then compare with
# tests/onnx-passing.txt. Arguments go to conformance.py. Where the suite cannot be generated
# that is said and the exit status is 0, or 1 if KS_REQUIRE_SUITE is set.
set -euo pipefail
cd "$(dirname "$0")/.."

suite="${CARGO_TARGET_DIR:-target}/onnx-suite"
scripts/venv.sh
if ls .venv/base-*.ready >/dev/null 2>&1; then
    .venv/bin/python scripts/onnx_suite.py "$suite"
elif [ ! -e "$suite/SUITE.json" ]; then
    echo "skipped: the ONNX suite needs the Python packages of scripts/requirements.txt"
    [ -z "${KS_REQUIRE_SUITE:-}" ] && exit 0 || exit 1
fi
exec python3 scripts/conformance.py --suite "$suite" "$@"
