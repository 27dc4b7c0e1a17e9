#!/usr/bin/env python3
"""Run `kernelsmith test-cases` on the ONNX suite and compare with the list of what passes.

    python3 scripts/conformance.py --suite target/onnx-suite [--backend cranelift] [--bless]

The list, tests/onnx-passing.txt, has a line for each case that passes: `group/case`, then the
backends it passes on. A case that the list names and that does not pass now is a failure. Cases
that pass and are not listed are printed, and added by --bless; nothing is ever taken away but by
hand. Whole results go to target/conformance/BACKEND.json, or to the folder --results.

The device ptx-interp counts as a backend: the kernels of a GPU, interpreted. Cases of whole networks (light/) are too
much for it, and a case that ran no kernel there is not added to the list.

Cases are given to the program in chunks. A process that dies, or reports nothing for --timeout
seconds, is charged to the first case that it had not reported; another goes on after that one.
After --seconds everything is ended; cases without a result are "not run", which is no failure.

Exit status: 0; 1 where a listed case does not pass; 2 where nothing could be run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import common

SAID = ("pass", "fail", "unsupported", "error")  # what the program may say of a case
DEVICES = ("ptx-interp", "cuda")  # named where a backend could be
CHARGED = ("crash", "timeout", "memory", "missing")  # what only this script says
NOT_RUN = "not run"
DEFAULT_LIST = common.ROOT / "tests" / "onnx-passing.txt"
LIST_HEAD = """\
# Cases of the ONNX suite that pass, and on which backends. Checked by scripts/conformance.py;
# `make bless` adds lines. A line leaves only together with the reason, in the commit's message.
"""


@dataclass
class Result:
    status: str
    detail: str = ""
    kernels: int = 0


# ---- running ----


class Runner:
    def __init__(self, program: Path, suite: Path, backend: str, args):
        self.program, self.suite, self.backend = program, suite, backend
        self.timeout, self.memory_mb = args.timeout, args.memory_mb
        self.until = time.monotonic() + args.seconds
        self.complaints: list[str] = []  # breaches of the contract between us and the program

    def chunk(self, cases: list[str]) -> dict[str, Result]:
        """Results of some cases, as many processes as it takes."""
        results: dict[str, Result] = {}
        todo = cases
        with tempfile.TemporaryDirectory(prefix="ks-conformance-") as tmp:
            while todo and time.monotonic() < self.until:
                self.process(todo, Path(tmp), results)
                todo = [c for c in todo if c not in results]
        return results | {c: Result(NOT_RUN) for c in todo}

    def process(self, cases: list[str], tmp: Path, results: dict[str, Result]):
        """One process; on return at least one more of the cases has a result, or the time is over."""
        names = {str(self.suite / c): c for c in cases}
        listing, out, err = tmp / "cases.txt", tmp / "results.jsonl", tmp / "stderr.txt"
        listing.write_text("".join(f"{n}\n" for n in names))
        out.write_bytes(b"")
        argv = [self.program, "test-cases", "--list", listing, "--jsonl", out,
                "--device" if self.backend in DEVICES else "--backend", self.backend]
        with open(err, "wb") as e:
            p = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=e,
                                 start_new_session=True)
        ended, seen, heard = "", 0, time.monotonic()
        while p.poll() is None and not ended:
            time.sleep(0.02)
            if out.stat().st_size != seen:
                seen, heard = out.stat().st_size, time.monotonic()
            elif time.monotonic() - heard > self.timeout:
                ended = "timeout"
            if common.rss_mb(p.pid) > self.memory_mb:
                ended = "memory"
            if time.monotonic() > self.until:
                ended = NOT_RUN
        if ended:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait()
        self.read(out, names, results)
        left = [c for c in cases if c not in results]
        if not left:
            if p.returncode != 0 and ended != NOT_RUN:
                self.complaints.append(f"exit status {p.returncode} after the last case, {cases[-1]}")
        elif ended == NOT_RUN:
            pass
        elif ended == "timeout":
            results[left[0]] = Result("timeout", f"nothing for {self.timeout:.0f} s")
        elif ended:
            results[left[0]] = Result(ended, f"more than {self.memory_mb} MB")
        elif p.returncode == 0:
            results.update((c, Result("missing", "the program ended without a word on it")) for c in left)
        else:
            how = (signal.Signals(-p.returncode).name if p.returncode < 0
                   else f"exit status {p.returncode}")
            results[left[0]] = Result("crash", f"{how}: {common.first_error(common.tail(err))}")

    def read(self, out: Path, names: dict[str, str], results: dict[str, Result]):
        for line in out.read_bytes().split(b"\n")[:-1]:
            try:
                said = json.loads(line)
                case = names[said["case"]]
                if said["status"] not in SAID or case in results:
                    raise ValueError(said["status"])
                results[case] = Result(said["status"], str(said.get("detail") or ""), int(said.get("kernels") or 0))
            except (ValueError, KeyError, TypeError) as e:
                self.complaints.append(f"bad line ({e!r}): {line[:160].decode('utf-8', 'replace')}")


def run_all(runner: Runner, cases: list[str], jobs: int, chunk: int) -> dict[str, Result]:
    # Neighbours are alike, and so is what they cost: deal them out rather than cut the list.
    count = max(1, -(-len(cases) // chunk))
    chunks = [cases[i::count] for i in range(count)]
    results: dict[str, Result] = {}
    with ThreadPoolExecutor(jobs) as pool:
        for done in pool.map(runner.chunk, chunks):
            results.update(done)
    return results


# ---- the list of what passes ----


def read_list(path: Path) -> dict[str, set[str]]:
    listed: dict[str, set[str]] = {}
    if path.is_file():
        for line in path.read_text().splitlines():
            if words := line.split("#")[0].split():
                listed[words[0]] = set(words[1:])
    return listed


def write_list(path: Path, listed: dict[str, set[str]]):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (" ".join([case, *sorted(backends)]) for case, backends in sorted(listed.items()))
    path.write_text(LIST_HEAD + "".join(f"{line}\n" for line in lines))


def find_cases(suite: Path) -> list[str]:
    return sorted(p.parent.relative_to(suite).as_posix() for p in suite.glob("*/*/model.onnx"))


# ---- telling ----


def summary(results: dict[str, Result]) -> str:
    n = Counter(r.status for r in results.values())
    ran = len(results) - n[NOT_RUN]
    parts = [f"{n['pass']} of {ran} pass ({n['pass'] / max(ran, 1):.1%})"]
    return ", ".join(parts + [f"{n[s]} {s}" for s in (*SAID[1:], *CHARGED, NOT_RUN) if n[s]])


def reasons(results: dict[str, Result], most: int):
    """The commonest reasons for refusing, names and numbers apart."""
    plain = Counter(re.sub(r"[`'\"][^`'\"]*[`'\"]|\d+", "_", r.detail)[:100]
                    for r in results.values() if r.status == "unsupported")
    for reason, n in plain.most_common(most):
        print(f"    {n:5} {reason}")


def check(backend: str, results: dict[str, Result], listed: dict[str, set[str]], args) -> list[str]:
    """Report on one backend; returns the listed cases that do not pass."""
    print(f"{backend}: {summary(results)}")
    if backend in DEVICES:
        passing = [r for r in results.values() if r.status == "pass"]
        ran = sum(r.kernels > 0 for r in passing)
        print(f"    {ran} of those that pass ran kernels on the device, {len(passing) - ran} needed none")
    for case, r in sorted(results.items()):
        if args.show and re.search(args.show, r.status):
            print(f"    {r.status:11} {case}: {r.detail[:200]}")
    if args.reasons:
        reasons(results, args.reasons)
    wanted = {c for c, backends in listed.items() if backend in backends}
    if args.include:
        wanted = {c for c in wanted if re.search(args.include, c)}
    broken = sorted(c for c in wanted if results.get(c, Result("gone")).status not in ("pass", NOT_RUN))
    for case in broken:
        r = results.get(case, Result("gone", "the suite has no such case"))
        print(f"    BROKEN {case}: {r.status}: {r.detail[:200]}")
    new = sorted(c for c, r in results.items() if r.status == "pass" and c not in wanted
                 and (r.kernels or backend not in DEVICES))
    if new:
        shown = ", ".join(new[:8]) + (", ..." if len(new) > 8 else "")
        print(f"    {len(new)} newly pass ({'added' if args.bless else 'add them with --bless'}): {shown}")
    if args.bless:
        for case in new:
            listed.setdefault(case, set()).add(backend)
    return broken


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--bin", help="the kernelsmith binary (default: the newest built)")
    ap.add_argument("--suite", type=Path, default=common.target_dir() / "onnx-suite")
    ap.add_argument("--list", type=Path, default=DEFAULT_LIST)
    ap.add_argument("--backend", help="separated by commas (default: all that features.sh tells)")
    ap.add_argument("--bless", action="store_true", help="add what newly passes to the list")
    ap.add_argument("--include", help="only cases that match this regular expression")
    ap.add_argument("--show", help="print the cases whose status matches this regular expression")
    ap.add_argument("--reasons", type=int, default=0, metavar="N", help="print the N commonest refusals")
    ap.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    ap.add_argument("--chunk", type=int, default=50)
    ap.add_argument("--timeout", type=float, default=60)
    ap.add_argument("--seconds", type=float, default=math.inf, help="for each backend")
    ap.add_argument("--results", type=Path, default=common.target_dir() / "conformance", help="folder for whole results")
    ap.add_argument("--memory-mb", type=int, default=4096)
    args = ap.parse_args()
    program = common.find_program(args.bin)
    suite = args.suite.resolve()
    cases = [c for c in find_cases(suite) if not args.include or re.search(args.include, c)]
    if not cases:
        print(f"no cases in {args.suite}", file=sys.stderr)
        return 2
    listed = read_list(args.list)
    wrong = False
    for backend in args.backend.split(",") if args.backend else common.available_backends() + common.devices():
        runner = Runner(program, suite, backend, args)
        fit = [c for c in cases if backend not in DEVICES or not c.startswith("light/")]
        results = run_all(runner, fit, args.jobs, args.chunk)
        wrong |= bool(check(backend, results, listed, args))
        for complaint in runner.complaints[:10]:
            print(f"    CONTRACT {complaint}")
            wrong = True
        common.write_json(args.results / f"{backend}.json",
                          {c: vars(r) for c, r in results.items()})
    if args.bless:
        write_list(args.list, listed)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
