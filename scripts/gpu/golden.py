#!/usr/bin/env python3
"""Repeat launches with known results on a GPU.

    scripts/gpu/golden.py cases.jsonl.xz [--json golden.json] [--jobs 8]
    scripts/gpu/golden.py cases.jsonl.xz --driver libkernelsmith_ptx_driver.so     # the script itself, without a GPU

Needs libcuda.so.1 and Python alone. scripts/gpu/cases.sh makes the cases; the module `golden` of runtime/ptx-interp says
what is in them. Every buffer lies between guard bytes, which must stay as they are. Cases run in --jobs processes, each with
a context of its own; where one dies or says nothing for --case-seconds, the case at hand has failed and a new process goes
on after it. Exit status 1 where anything is wrong or was not run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import lzma
import math
import os
import struct
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import children

GUARD = 0xA5
# Buffers begin at multiples of this, and between them are at least half as many guard bytes.
ALIGN = 512
START_SECONDS = 60
LOG_BYTES = 1 << 14
CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 5, 6
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76
SHOWN = 30


class DriverError(Exception):
    pass


class Driver:
    """A context of the first device, and memory in it."""

    def __init__(self, path):
        # each text is assembled once, when it is loaded
        os.environ |= {"CUDA_CACHE_DISABLE": "1", "CUDA_MODULE_LOADING": "EAGER"}
        self.lib = ctypes.CDLL(path)
        self.lib.cuModuleLoadDataEx.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p]
        self.call("cuInit", ctypes.c_uint(0))
        self.device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(self.device), 0)
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        self.call("cuCtxSetCurrent", context)
        self.stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(self.stream), ctypes.c_uint(1))
        self.at, self.room = ctypes.c_uint64(), 0

    def call(self, name, *args):
        code = getattr(self.lib, name)(*args)
        if code != 0:
            raise DriverError(f"{name}: {self.word('cuGetErrorName', code)}: {self.word('cuGetErrorString', code)}")

    def word(self, function, code) -> str:
        text = ctypes.c_char_p()
        known = getattr(self.lib, function)(code, ctypes.byref(text)) == 0 and text.value
        return text.value.decode(errors="replace") if known else str(code)

    def about(self) -> dict:
        name, version = ctypes.create_string_buffer(100), ctypes.c_int()
        self.call("cuDeviceGetName", name, len(name), self.device)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        numbers = []
        for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
            numbers.append(ctypes.c_int())
            self.call("cuDeviceGetAttribute", ctypes.byref(numbers[-1]), attribute, self.device)
        return {"device": name.value.decode(), "capability": ".".join(str(n.value) for n in numbers), "driver": version.value}

    def load(self, text):
        """A module of the text; what the assembler said where it refuses."""
        module, log = ctypes.c_void_p(), ctypes.create_string_buffer(LOG_BYTES)
        names = (ctypes.c_int * 2)(CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), LOG_BYTES)
        try:
            self.call("cuModuleLoadDataEx", ctypes.byref(module), text.encode(), 2, names, values)
        except DriverError as e:
            raise DriverError(f"{e} {log.value.decode(errors='replace').strip()}".strip()) from None
        return module

    def unload(self, module):
        self.call("cuModuleUnload", module)

    def launch(self, module, case, offsets, memory: bytearray) -> bytearray:
        """Runs a kernel on `memory`, in which buffers lie at `offsets`; gives what it holds afterwards."""
        if self.room < len(memory):
            if self.room:
                self.call("cuMemFree_v2", self.at)
            self.room = max(1 << 22, 2 * len(memory))
            self.call("cuMemAlloc_v2", ctypes.byref(self.at), ctypes.c_size_t(self.room))
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, case["entry"].encode())
        values = []
        for a in case["arguments"]:
            data = bytes.fromhex(a) if isinstance(a, str) else struct.pack("<Q", self.at.value + offsets[a[0]] + a[1])
            values.append(ctypes.create_string_buffer(data, len(data)))
        addresses = (ctypes.c_void_p * max(1, len(values)))(*(ctypes.addressof(v) for v in values))
        host = (ctypes.c_char * len(memory)).from_buffer(memory)
        size = ctypes.c_size_t(len(memory))
        self.call("cuMemcpyHtoDAsync_v2", self.at, host, size, self.stream)
        extent = [ctypes.c_uint(n) for n in (*case["grid"], *case["block"], case["shared"])]
        self.call("cuLaunchKernel", function, *extent, self.stream, addresses, None)
        after = bytearray(len(memory))
        self.call("cuMemcpyDtoHAsync_v2", (ctypes.c_char * len(after)).from_buffer(after), self.at, size, self.stream)
        self.call("cuStreamSynchronize", self.stream)
        return after


def numbers(data: bytes, form: str) -> list[float]:
    if form == "bf16":
        data, form = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2)), "f32"
    code, size = {"f16": "e", "f32": "f", "tf32": "f", "f64": "d"}[form], {"f16": 2, "f64": 8}.get(form, 4)
    if form == "tf32":
        data = b"".join(struct.pack("<I", w & ~0x1FFF) for w, in struct.iter_unpack("<I", data))
    return list(struct.unpack(f"<{len(data) // size}{code}", data))


class Compared:
    """Two byte strings as a buffer of a case wants them compared."""

    def __init__(self, buffer, want: bytes, got: bytes):
        how, skip = buffer["compare"], set(buffer["open"])
        self.form = how.get("float")
        size = how["bits"] if self.form is None else {"f16": 2, "bf16": 2, "f64": 8}.get(self.form, 4)
        self.size, self.wrong, self.payloads, self.off = size, [], 0, 0.0
        unequal = [] if want == got else \
            [i for i in range(len(want) // size) if i not in skip and want[i * size:][:size] != got[i * size:][:size]]
        if self.form is None:
            self.wrong = unequal
            return
        for i in unequal:
            (w,), (g,) = (numbers(x[i * size:][:size], self.form) for x in (want, got))
            if math.isnan(w) and math.isnan(g):
                self.payloads += 1
            elif w == g:
                # zeros of different signs, or bits without a meaning
                if w == 0 and not how["any_zero"]:
                    self.wrong.append(i)
            elif math.isfinite(w) and math.isfinite(g):
                if abs(g - w) > how["relative"] * abs(w) + how["absolute"]:
                    self.wrong.append(i)
                else:
                    self.off = max(self.off, abs(g - w) / abs(w) if w else 0.0)
            else:
                self.wrong.append(i)


def outcome(case, strings, offsets, before: bytearray, after: bytearray) -> dict:
    """What is wrong with a case, if anything."""
    end, found = 0, {"ok": True}
    for number, (b, offset) in enumerate(zip(case["buffers"], offsets)):
        if before[end:offset] != after[end:offset]:
            at = next(i for i in range(end, offset) if before[i] != after[i])
            return {"ok": False, "said": f"a write {offset - at} bytes in front of buffer {number}"}
        end = offset + len(strings[b["before"]])
        got = bytes(after[offset:end])
        tried = [Compared(b, strings[a], got) for a in b["after"]]
        if not tried:
            continue
        best = min(tried, key=lambda c: len(c.wrong))
        found["off"] = max(best.off, found.get("off", 0.0))
        found["payloads"] = best.payloads + found.get("payloads", 0)
        if best.wrong and found["ok"]:
            i, size = best.wrong[0], best.size
            word = i * size // 8 * 8
            want = strings[b["after"][tried.index(best)]]
            show = lambda data: (f"{numbers(data, best.form)[0]:.9g} = " if best.form else "") + "0x" + data[::-1].hex()
            # those of a form lie at the same place as its result
            operands = [bytes(strings[o["before"]][word:word + 8])[::-1].hex() for o in case["buffers"]
                        if o is not b and len(strings[o["before"]]) == len(want)]
            found |= {"ok": False, "buffer": number, "element": i, "wrong": len(best.wrong), "of": len(want) // size,
                      "expected": show(want[i * size:][:size]), "found": show(got[i * size:][:size]), "operands": operands}
            found["said"] = (f"buffer {number} element {i}: {found['found']}, expected {found['expected']} "
                             f"({len(best.wrong)} of {found['of']} elements)")
    if before[end:] != after[end:]:
        return {"ok": False, "said": "a write behind the last buffer"}
    return found


def replay(path, driver, line, first):
    """Runs the cases of a chunk from a given one, and prints a line before and after each."""
    def say(**what):
        print(json.dumps(what), flush=True)

    gpu = Driver(driver)
    say(about=gpu.about())
    with open(path) as chunk:
        for at, text in enumerate(chunk):
            if at < line:
                continue
            module = json.loads(text)
            cases, strings = module["cases"], [bytes.fromhex(s) for s in module["strings"]]
            begin, first = first, 0
            named = [{"source": module["source"], "group": c["group"], "name": c["name"]} for c in cases]
            say(at=named[begin] | {"cases": len(cases) - begin}, next=[at + 1, 0])
            try:
                loaded = gpu.load(module["text"])
            except DriverError as e:
                for n in named[begin:]:
                    say(**n, ok=False, said=str(e), next=[at + 1, 0])
                continue
            for i, case in list(enumerate(cases))[begin:]:
                go_on = [at, i + 1] if i + 1 < len(cases) else [at + 1, 0]
                say(at=named[i], next=go_on)
                offsets, end = [], ALIGN
                for b in case["buffers"]:
                    offsets.append(end)
                    end = -(-(end + len(strings[b["before"]]) + ALIGN // 2) // ALIGN) * ALIGN
                before = bytearray([GUARD]) * end
                for b, offset in zip(case["buffers"], offsets):
                    data = strings[b["before"]]
                    before[offset:offset + len(data)] = data
                try:
                    after = gpu.launch(loaded, case, offsets, before)
                except DriverError as e:
                    # whatever it was, the context may be lost
                    say(**named[i], ok=False, said=str(e), next=go_on, lost=True)
                    os._exit(1)
                say(**named[i], **outcome(case, strings, offsets, before, after), next=go_on)
            gpu.unload(loaded)
    say(end=True)
    # a driver at its end is none of our business
    sys.stdout.flush()
    os._exit(0)


class Replay:
    """All chunks, each by one process at a time."""

    def __init__(self, args):
        self.args = args
        self.until = time.monotonic() + args.total
        self.results, self.about, self.trouble = [], {}, set()

    def chunk(self, path):
        start, idle = [0, 0], 0
        while idle < 2 and time.monotonic() < self.until:
            argv = [sys.executable, __file__, path, "--driver", self.args.driver, "--replay", *start]
            process = children.Contestant(path.name, argv)
            now, idle = None, idle + 1
            wait = START_SECONDS
            try:
                while True:
                    _, said = process.answer(min(self.until, time.monotonic() + wait))
                    if "end" in said:
                        return
                    if "about" in said:
                        self.about = said["about"]
                    elif "at" in said:
                        now = said
                        # many kernels are assembled at once
                        wait = self.args.case_seconds * (5 if now["at"].get("cases", 1) > 1 else 1)
                    else:
                        self.results.append(said)
                        now, idle, start = None, 0, said["next"]
                        if said.get("lost"):
                            break
            except (TimeoutError, RuntimeError) as e:
                if time.monotonic() > self.until:
                    return
                if now is None:
                    self.trouble.add(str(e))
                else:
                    self.results += [now["at"] | {"ok": False, "said": str(e)}] * now["at"].get("cases", 1)
                    idle, start = 0, now["next"]
            finally:
                process.end()

    def run(self, lines) -> dict:
        with tempfile.TemporaryDirectory(prefix="ks-golden-") as tmp:
            # the longest first, each to whom has least
            loads = [[0, []] for _ in range(min(self.args.jobs, len(lines)))]
            for line in sorted(lines, key=len, reverse=True):
                least = min(loads, key=lambda load: load[0])
                least[0] += len(line) + 20_000
                least[1].append(line)
            threads = []
            for i, (_, some) in enumerate(loads):
                path = Path(tmp) / f"chunk{i}"
                path.write_text("".join(some))
                threads.append(threading.Thread(target=self.chunk, args=(path,)))
            for t in threads:
                t.start()
            for t in threads:
                t.join()
        return self.summary(sum(len(json.loads(line)["cases"]) for line in lines))

    def summary(self, cases) -> dict:
        sources, groups = {}, {}
        for r in self.results:
            s = sources.setdefault(r["source"], Counter(passed=0, failed=0))
            g = groups.setdefault((r["source"], r["group"]), {"passed": 0, "failed": 0, "off": 0.0, "payloads": 0})
            for counts in (s, g):
                counts["passed" if r["ok"] else "failed"] += 1
            g["off"] = max(g["off"], r.get("off", 0.0))
            g["payloads"] += r.get("payloads", 0)
        failures = [{k: v for k, v in r.items() if k not in ("next", "ok")} for r in self.results if not r["ok"]]
        return {"about": self.about, "cases": cases, "passed": len(self.results) - len(failures), "failed": len(failures),
                "not_run": cases - len(self.results), "trouble": sorted(self.trouble), "sources": sources,
                "groups": [{"source": s, "group": g, **counts} for (s, g), counts in sorted(groups.items())],
                "failures": sorted(failures, key=lambda f: (f["source"], f["group"], f["name"]))}


def lines_of(path: Path, only) -> list[str]:
    if path.is_dir():
        lines = [f.read_text() for f in sorted(path.glob("*.json"))]
    else:
        with (lzma.open if path.suffix == ".xz" else open)(path, "rt") as f:
            lines = list(f)
    return [line for line in lines if not only or json.loads(line)["source"] == only]


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("cases", type=Path, help="a file of lines, compressed by xz or not, or a directory of *.json")
    ap.add_argument("--json", type=Path, help="write results here")
    ap.add_argument("--only", metavar="SOURCE", help="forms, kernels or emitters")
    ap.add_argument("--driver", default="libcuda.so.1", help="the library with the driver's entry points")
    ap.add_argument("--jobs", type=int, default=8)
    ap.add_argument("--case-seconds", type=float, default=10)
    ap.add_argument("--total", type=float, default=300, help="seconds for everything")
    ap.add_argument("--replay", nargs=2, type=int, help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.replay:
        return replay(args.cases, args.driver, *args.replay)
    began = time.monotonic()
    lines = lines_of(args.cases, args.only)
    if not lines:
        ap.error(f"no cases in {args.cases}")
    found = Replay(args).run(lines) | {"seconds": round(time.monotonic() - began, 2)}
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    for g in found["groups"]:
        notes = [f"off by {g['off']:.1e}"] * (g["off"] > 0) + [f"{g['payloads']} other NaNs"] * (g["payloads"] > 0)
        print(f"{'FAIL' if g['failed'] else 'ok':4} {g['source']}: {g['group']}: {g['passed']} of {g['passed'] + g['failed']}"
              + "".join(f", {n}" for n in notes))
    for f in found["failures"][:SHOWN]:
        operands = f", operands {' '.join(f['operands'])}" if f.get("operands") else ""
        print(f"{f['source']}: {f['name']}: {f['said']}{operands}")
    for t in found["trouble"]:
        print(f"a process did not get to its first case: {t}")
    print(f"{' '.join(str(v) for v in found['about'].values())}: {found['passed']} passed, {found['failed']} failed, "
          f"{found['not_run']} not run, {found['seconds']} s")
    return 0 if found["passed"] == found["cases"] else 1


if __name__ == "__main__":
    sys.exit(main())
