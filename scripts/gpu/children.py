"""Contestants as processes that answer a line with a line, and the table of what came out."""

from __future__ import annotations

import json
import os
import queue
import signal
import statistics
import subprocess
import threading
import time

# A turn should take about so long, on the device.
TURN_US = 20_000
MOST_CALLS = 200
# Part of the time in which contestants have to be ready.
READY = 0.75


class Contestant:
    """A process that prints a line when it is ready, and microseconds of a call for each line N."""

    def __init__(self, name, argv):
        self.name = name
        self.process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.error: list[str] = []
        readers = [self.read, lambda: self.error.extend(self.process.stderr)]
        self.threads = [threading.Thread(target=r, daemon=True) for r in readers]
        for t in self.threads:
            t.start()

    def read(self):
        for line in self.process.stdout:
            # libraries print what they like
            if line.startswith("{"):
                self.lines.put(line)
        self.lines.put(None)

    def answer(self, until) -> dict:
        """The next line; an error where it does not come in time."""
        try:
            line = self.lines.get(timeout=max(0.1, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError("no answer in time") from None
        if line is None:
            time.sleep(0.1)
            raise RuntimeError(("".join(self.error).strip().splitlines() or ["no words"])[-1][-200:])
        return json.loads(line)

    def turn(self, n, until) -> float:
        self.process.stdin.write(f"{n}\n")
        self.process.stdin.flush()
        said = self.answer(until)
        us = said.get("us", said.get("device_us"))
        if us is None:
            raise RuntimeError("its runs are not replayed")
        return us

    def end(self):
        """With all processes that it has started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        for t in self.threads:
            t.join(5)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                pipe.close()
            except BrokenPipeError:
                pass


def contest(argv: dict[str, list], rounds: int, seconds: float) -> dict:
    """Starts all of `argv` and lets them take turns. Medians in microseconds by name, and of the ratios to `ours`, by round; what
    the others said where they could not."""
    began = time.monotonic()
    ready_until, until = began + READY * seconds, began + seconds
    all_of_them = [Contestant(name, a) for name, a in argv.items()]
    found: dict = {"about": {}, "could_not": {}, "us": {}, "ratios": {}}
    calls, times = {}, {}

    def attempt(c, step):
        try:
            return step()
        except (OSError, RuntimeError, TimeoutError, ValueError) as e:
            found["could_not"][c.name] = str(e)
            c.end()
            times.pop(c.name, None)
            return None
    try:
        for c in all_of_them:
            found["about"][c.name] = attempt(c, lambda: c.answer(ready_until))
        ready = lambda: [c for c in all_of_them if c.name not in found["could_not"]]
        for c in ready():
            if (us := attempt(c, lambda: c.turn(3, until))) is not None:
                calls[c.name] = int(min(MOST_CALLS, max(3, TURN_US / max(us, 1e-3))))
                times[c.name] = []
        for _ in range(rounds):
            if time.monotonic() > until:
                break
            for c in ready():
                if (us := attempt(c, lambda: c.turn(calls[c.name], until))) is not None:
                    times[c.name].append(us)
    finally:
        for c in all_of_them:
            c.end()
    found["us"] = {name: round(statistics.median(t), 2) for name, t in times.items() if t}
    for name, t in times.items():
        both = [theirs / max(us, 1e-9) for theirs, us in zip(t, times.get("ours", []))]
        if name != "ours" and both:
            found["ratios"][name] = round(statistics.median(both), 3)
    if "ours" in found["could_not"]:
        found |= {"ok": False, "said": found["could_not"]["ours"]}
    return found


def report(device, small, results, peers) -> str:
    """Markdown: what was wrong, and times beside those of the peers."""
    note = ", small sizes: times mean nothing" if small else ""
    lines = [f"# kernelsmith on {device}{note}", ""]
    about = next((r["about"] for items in results.values() for r in items.values() if r.get("about")), {})
    lines += [f"- {name}: {', '.join(f'{k} {v}' for k, v in said.items() if k != 'compile_ms')}"
              for name, said in about.items() if said and name != "ours"]
    lines += ["", "| section | item | result |", "|---|---|---|"]
    timed = []
    for section, items in results.items():
        for item, r in items.items():
            if r["ok"] and "run_ms" in r:
                timed.append((item, r))
                continue
            what = ("" if r["ok"] else "**wrong** ") + str(r.get("said", ""))[:160].replace("|", "/").replace("\n", " ")
            lines.append(f"| {section} | {item} | {what} |")
    if not timed:
        return "\n".join(lines) + "\n"
    shown = [p for p in peers if any(p in r.get("us", {}) for _, r in timed)]
    lines += ["", "Microseconds on the device; in brackets how many times ours the peer's is (above 1: we are faster).", "",
              f"| item | ours | GB/s | {''.join(f'{p} | ' for p in shown)}a run with copies, ms | load, ms | kernels |",
              "|---|---|---|" + "---|" * (len(shown) + 3)]
    for item, r in timed:
        ours = r.get("us", {}).get("ours") or r["device_us"] or r["kernels_us"]
        rate = f"{r['bytes'] / ours / 1e3:.0f}" if "bytes" in r else ""
        cells = [f"{r['us'][p]:.1f} ({r['ratios'].get(p, 0):.2f})" if p in r.get("us", {})
                 else r.get("could_not", {}).get(p, "")[:40].replace("|", "/") for p in shown]
        lines.append(f"| {item} | {ours:.1f} | {rate} | {''.join(f'{c} | ' for c in cells)}{r['run_ms']:.3f} | "
                     f"{r['load_ms']:.0f} | {r['kernels']} |")
    return "\n".join(lines) + "\n"
