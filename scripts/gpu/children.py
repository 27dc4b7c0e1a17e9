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
# Parts of an item's time until which contestants have to be ready, and turns begin. The rest is for our profile.
READY, TURNS = 0.7, 0.85
# A turn may take so long, even where the item's time is over: who was ready keeps what was measured.
TURN_SECONDS = 10.0
# A peer that has not started by then never does.
START_SECONDS = 90.0
# Whose calls copy memory: no contestant, but what others are a part of.
COPY = "copy"


class Contestant:
    """A process that prints a line when it is ready, and microseconds of a call for each line N. A peer (peers.py) prints one
    before, what it is, when it has started, and is ready anew after each work that it is told."""

    def __init__(self, name, argv):
        self.name, self.about, self.began = name, {}, time.monotonic()
        self.process = subprocess.Popen([str(a) for a in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True, start_new_session=True)
        self.lines: queue.Queue[tuple[float, str] | None] = queue.Queue()
        self.error: list[str] = []
        readers = [self.read, lambda: self.error.extend(self.process.stderr)]
        self.threads = [threading.Thread(target=r, daemon=True) for r in readers]
        for t in self.threads:
            t.start()

    def read(self):
        for line in self.process.stdout:
            # libraries print what they like
            if line.startswith("{"):
                self.lines.put((time.monotonic(), line))
        self.lines.put(None)

    def say(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def answer(self, until) -> tuple[float, dict]:
        """When the next line came, and what it says; an error where it does not come in time."""
        try:
            got = self.lines.get(timeout=max(0.1, until - time.monotonic()))
        except queue.Empty:
            raise TimeoutError("no answer in time") from None
        if got is None:
            time.sleep(0.1)
            raise RuntimeError(("".join(self.error).strip().splitlines() or ["no words"])[-1][-200:])
        return got[0], json.loads(got[1])

    def turn(self, n) -> float:
        self.say(n)
        said = self.answer(time.monotonic() + TURN_SECONDS)[1]
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


class Peers:
    """The peers' processes, which start once (it takes 5 to 10 s) and are told one work after the other."""

    def __init__(self, argv: dict[str, list]):
        self.argv = argv
        self.running: dict[str, Contestant] = {}
        self.given_up: dict[str, str] = {}

    def start(self, names):
        """Those that do not run, or do not any more."""
        for name in names:
            known = self.running.get(name)
            if known and (not known.about or known.process.poll() is None):
                # it runs, or nobody has asked yet why it does not
                continue
            if known:
                known.end()
            self.running[name] = Contestant(name, self.argv[name])

    def started(self, name, until) -> str | None:
        """Waits for it; why it has not started. Who cannot start is not tried again."""
        c = self.running[name]
        if name in self.given_up or c.about:
            return self.given_up.get(name)
        last = c.began + START_SECONDS
        try:
            c.about = c.answer(min(until, last))[1]
            return None
        except (RuntimeError, TimeoutError, ValueError) as e:
            if isinstance(e, TimeoutError) and time.monotonic() < last:
                return "is still starting"
            self.given_up[name] = f"has not started: {e}"
            c.end()
            return self.given_up[name]

    def tell(self, names, work: dict, until) -> tuple[list[Contestant], dict[str, str]]:
        """Gives them a work when all have started, until then at the latest; and why who was left out. Whoever cannot take it
        has ended, and its next answer says why."""
        self.start(names)
        reasons = {name: self.started(name, until) for name in names}
        told = [self.running[name] for name in names if reasons[name] is None]
        for c in told:
            try:
                c.say(json.dumps(work))
            except OSError:
                pass
        return told, {name: reason for name, reason in reasons.items() if reason}

    def end(self):
        for c in self.running.values():
            c.end()
        self.running = {}


def contest(contestants: list[Contestant], rounds: int, began: float, seconds: float) -> dict:
    """Lets contestants take turns who have been told what to do; in `seconds` since then, `began`. Medians in microseconds by
    name, and of the ratios to `ours`, by round; what the others said where they could not: these have ended then. `ready_s` is
    how long each took to be ready."""
    ready_until, until = began + READY * seconds, began + TURNS * seconds
    found: dict = {"about": {}, "ready_s": {}, "could_not": {}, "us": {}, "ratios": {}}
    calls, times = {}, {}

    def attempt(c, step):
        try:
            return step()
        except (OSError, RuntimeError, TimeoutError, ValueError) as e:
            found["could_not"][c.name] = str(e)
            c.end()
            times.pop(c.name, None)
            return None

    for c in contestants:
        if (got := attempt(c, lambda: c.answer(ready_until))) is not None:
            found["ready_s"][c.name] = round(got[0] - began, 2)
            found["about"][c.name] = c.about | got[1]
    ready = lambda: [c for c in contestants if c.name not in found["could_not"]]
    for c in ready():
        if (us := attempt(c, lambda: c.turn(3))) is not None:
            calls[c.name] = int(min(MOST_CALLS, max(3, TURN_US / max(us, 1e-3))))
            times[c.name] = []
    for _ in range(rounds):
        if time.monotonic() > until:
            break
        for c in ready():
            if (us := attempt(c, lambda: c.turn(calls[c.name]))) is not None:
                times[c.name].append(us)
    found["us"] = {name: round(statistics.median(t), 2) for name, t in times.items() if t}
    for name, t in times.items():
        both = [theirs / max(us, 1e-9) for theirs, us in zip(t, times.get("ours", []))]
        if name != "ours" and both:
            found["ratios"][name] = round(statistics.median(both), 3)
    if "ours" in found["could_not"]:
        found |= {"ok": False, "said": found["could_not"]["ours"]}
    return found


def rates(r, ours) -> str:
    """GB/s of an item whose bytes are counted, and what part that is of a copy's, in the same rounds where there are some."""
    if "bytes" not in r:
        return " | "
    of_copy = ""
    if COPY in r.get("ratios", {}):
        of_copy = f"{r['ratios'][COPY] * r['bytes'] / r['about'][COPY]['bytes']:.2f}"
    return f"{r['bytes'] / ours / 1e3:.0f} | {of_copy}"


def report(device, small, results, peers) -> str:
    """Markdown: what was wrong, and times beside those of the peers."""
    note = ", small sizes: times mean nothing" if small else ""
    lines = [f"# kernelsmith on {device}{note}", ""]
    about = {}
    for items in results.values():
        for r in items.values():
            about |= r.get("about", {})
    lines += [f"- {name}: {', '.join(f'{k} {v}' for k, v in said.items() if k != 'bytes')}"
              for name, said in about.items() if name != "ours"]
    lines += ["", "| section | item | result |", "|---|---|---|"]
    timed = []
    for section, items in results.items():
        for item, r in items.items():
            if r["ok"] and ("run_ms" in r or r.get("us")):
                timed.append((item, r))
                continue
            what = ("" if r["ok"] else "**wrong** ") + str(r.get("said", ""))[:160].replace("|", "/").replace("\n", " ")
            lines.append(f"| {section} | {item} | {what} |")
    if not timed:
        return "\n".join(lines) + "\n"
    shown = [p for p in peers if any(p in r.get("us", {}) for _, r in timed)]
    lines += ["", "Microseconds on the device; in brackets how many times ours the peer's is (above 1: we are faster).", "",
              f"| item | ours | GB/s | of a copy's | {''.join(f'{p} | ' for p in shown)}a run with copies, ms | load, ms | kernels |",
              "|---|---|---|---|" + "---|" * (len(shown) + 3)]
    for item, r in timed:
        ours = r.get("us", {}).get("ours") or r.get("device_us") or r.get("kernels_us") or 0.0
        cells = [f"{r['us'][p]:.1f} ({r['ratios'].get(p, 0):.2f})" if p in r.get("us", {})
                 else r.get("could_not", {}).get(p, "")[:40].replace("|", "/") for p in shown]
        profile = (f"{r['run_ms']:.3f} | {r['load_ms']:.0f} | {r['kernels']}" if "run_ms" in r else " | | ")
        lines.append(f"| {item} | {ours:.1f} | {rates(r, ours)} | {''.join(f'{c} | ' for c in cells)}{profile} |")
    return "\n".join(lines) + "\n"
