#!/usr/bin/env python3
"""Speaks the command line of kernelsmith, computing with the reference evaluator of `onnx`.

FAKE_CASES, a JSON object {regular expression: behaviour}, makes `test-cases` misbehave on cases
that match: crash, hang, silent (no line at all), fail, unsupported, garbage. FAKE_RUN does the
same to `run`, for the whole command: wrong, unsupported, crash, hang.
"""

import json
import os
import re
import sys
import time
from pathlib import Path


def option(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def test_cases():
    rules = json.loads(os.environ.get("FAKE_CASES", "{}"))
    with open(option("--jsonl"), "a") as out:
        for case in Path(option("--list")).read_text().split():
            how = next((h for pattern, h in rules.items() if re.search(pattern, case)), "pass")
            if how == "crash":
                print("thread 'main' panicked at: fake", file=sys.stderr)
                os.abort()
            elif how == "hang":
                time.sleep(3600)
            elif how == "garbage":
                print("not json", file=out, flush=True)
            elif how != "silent":
                print(json.dumps({"case": case, "status": how, "detail": how}), file=out, flush=True)


def evaluate(model_path, inputs):
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model_path).run(None, dict(np.load(inputs)))


def run():
    import numpy as np

    how = os.environ.get("FAKE_RUN", "")
    if how == "unsupported":
        print("error: node `conv1` (Conv) is not supported", file=sys.stderr)
        sys.exit(3)
    if how == "crash":
        os.abort()
    if how == "hang":
        time.sleep(3600)
    outputs = evaluate(sys.argv[2], option("--inputs"))
    folder = Path(option("--output-dir"))
    folder.mkdir(parents=True, exist_ok=True)
    for i, x in enumerate(outputs):
        np.save(folder / f"output_{i}.npy", x + 1 if how == "wrong" else x)
    print(json.dumps({"compile_ms": 1.5, "run_ms": 0.25}))


def bench():
    print(json.dumps({"compile_ms": 1.5}), flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        for _ in range(int(line)):
            pass
        spent = (time.perf_counter() - began) * 1e3 + 0.01
        print(json.dumps({"times_ms": [spent] * int(line)}), flush=True)


if __name__ == "__main__":
    if "--help" in sys.argv:
        print("--json")
    else:
        {"test-cases": test_cases, "run": run, "bench": bench}[sys.argv[1]]()
