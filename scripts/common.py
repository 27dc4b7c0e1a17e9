"""What the scripts of this folder share: places, processes, tensors and comparing them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXIT = {0: "ok", 1: "failed", 2: "usage", 3: "unsupported", 4: "bad input", 5: "limit", 70: "internal"}
BACKENDS = ("llvm", "cranelift", "interp")


# ---- places ----


def target_dir() -> Path:
    return Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target")


def find_program(given: str | None) -> Path:
    """The kernelsmith binary: as given, or the newest that cargo has built here."""
    if given:
        path = Path(given)
        if not path.is_file():
            sys.exit(f"no such program: {given}")
        return path.resolve()
    built = [target_dir() / profile / "kernelsmith" for profile in ("ci", "release", "debug")]
    built = [p for p in built if p.is_file()]
    if not built:
        sys.exit("kernelsmith is not built: run `make build`, or name it with --bin")
    return max(built, key=lambda p: p.stat().st_mtime).resolve()


def features() -> list[str]:
    """What a build on this machine has, by scripts/features.sh."""
    out = subprocess.run([ROOT / "scripts" / "features.sh"], capture_output=True, text=True, check=True)
    return out.stdout.strip().split(",")


def available_backends() -> list[str]:
    """The native backends among the features."""
    return [b for b in BACKENDS if b in features()]


def devices() -> list[str]:
    """Devices that need no hardware."""
    return ["ptx-interp"] if "cuda" in features() else []


def shared_dir() -> Path | None:
    """The folder with the model zoo, which is not part of this repository."""
    path = Path(os.environ.get("KS_SHARED") or ROOT.parent / "shared")
    return path.resolve() if (path / "models" / "index.json").is_file() else None


# ---- processes ----


@dataclass
class Finished:
    status: int  # the exit status; negative: ended by that signal
    seconds: float
    peak_mb: float
    stdout: str
    stderr: str
    killed: str = ""  # why this script ended it: "timeout", "memory" or ""

    def outcome(self) -> str:
        if self.killed:
            return self.killed
        if self.status < 0:
            return f"killed by {signal.Signals(-self.status).name}"
        return EXIT.get(self.status, f"exit status {self.status}")


def rss_mb(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def run_limited(argv, timeout: float, memory_mb: float, folder: Path, cwd=None, env=None) -> Finished:
    """Run a command; end it after `timeout` seconds or above `memory_mb` of resident memory.

    Its output passes through files in `folder`, so that a chatty process cannot block.
    """
    out_path, err_path = folder / "stdout.txt", folder / "stderr.txt"
    began = time.monotonic()
    killed = ""
    with open(out_path, "wb") as out, open(err_path, "wb") as err:
        p = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                             cwd=cwd, env=env, start_new_session=True)
        nap = 0.005
        while True:
            pid, status, usage = os.wait4(p.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - began > timeout:
                killed = "timeout"
            elif rss_mb(p.pid) > memory_mb:
                killed = "memory"
            if killed:
                os.killpg(p.pid, signal.SIGKILL)
                _, status, usage = os.wait4(p.pid, 0)
                break
            time.sleep(nap)
            nap = min(nap * 1.5, 0.1)
        p.returncode = os.waitstatus_to_exitcode(status)
    return Finished(p.returncode, time.monotonic() - began, usage.ru_maxrss / 1024,
                    tail(out_path), tail(err_path), killed)


def tail(path: Path, size: int = 20000) -> str:
    data = path.read_bytes()
    return data[-size:].decode("utf-8", "replace")


def last_line(text: str, limit: int = 300) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:limit] if lines else ""


def first_error(text: str, limit: int = 300) -> str:
    """The line of a program's stderr that says what went wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if line.lower().startswith(("error", "thread ", "unsupported")) or "panicked" in line:
            return line[:limit]
    return lines[-1][:limit] if lines else ""


# ---- tensors ----

# Element types that .npy lacks, by the numpy type that carries them: their bits for the
# floating-point types, their value for the integers narrower than a byte.
NPY_CARRIER = {
    "BFLOAT16": "uint16",
    "FLOAT8E4M3FN": "uint8", "FLOAT8E4M3FNUZ": "uint8", "FLOAT8E5M2": "uint8",
    "FLOAT8E5M2FNUZ": "uint8", "FLOAT8E8M0": "uint8", "FLOAT4E2M1": "uint8",
    "INT4": "int8", "INT2": "int8", "UINT4": "uint8", "UINT2": "uint8",
}


def bf16_to_f32(bits):
    import numpy as np

    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def f32_to_bf16(x):
    """Round to nearest even; NaN stays NaN."""
    import numpy as np

    u = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint32(0x7FC0), rounded).astype(np.uint16).reshape(np.shape(x))


@dataclass
class Tolerance:
    """got is right where |got - want| <= rtol * |want| + scaled * max|want| + atol."""

    rtol: float
    scaled: float
    atol: float = 0.0


@dataclass
class Difference:
    ok: bool
    max_abs: float = 0.0
    max_scaled: float = 0.0  # the largest difference over the largest |want|
    detail: str = ""


def compare(got, want, tol: Tolerance) -> Difference:
    """Compare one output, element by element. Integers, booleans and strings must be equal."""
    import numpy as np

    if got.shape != want.shape:
        return Difference(False, detail=f"shape {list(got.shape)}, expected {list(want.shape)}")
    if got.dtype.kind != want.dtype.kind or got.dtype.itemsize != want.dtype.itemsize:
        if got.dtype.kind not in "US":
            return Difference(False, detail=f"type {got.dtype}, expected {want.dtype}")
    if want.size == 0:
        return Difference(True)
    if want.dtype.kind != "f":
        bad = int((got != want).sum())
        return Difference(bad == 0, detail=f"{bad} of {want.size} elements differ" if bad else "")
    g, w = got.astype(np.float64), want.astype(np.float64)
    both_nan, same_inf = np.isnan(g) & np.isnan(w), np.isinf(w) & (g == w)
    plain = ~(both_nan | same_inf)
    finite = np.abs(w[np.isfinite(w)])
    scale = float(finite.max()) if finite.size else 0.0
    with np.errstate(all="ignore"):
        diff = np.abs(g - w)
        near = diff <= tol.rtol * np.abs(w) + tol.scaled * scale + tol.atol
        bad = plain & ~(near & np.isfinite(diff))
    seen = diff[plain]
    worst = float(np.nanmax(seen)) if seen.size and not np.isnan(seen).all() else 0.0
    out = Difference(not bad.any(), worst, worst / scale if scale else worst)
    if bad.any():
        k = int(np.argmax(bad.ravel()))
        out.detail = (f"{int(bad.sum())} of {want.size} elements differ, the first at {k}: "
                      f"{g.ravel()[k]:.7g}, expected {w.ravel()[k]:.7g}")
    return out


# ---- reports ----


def write_json(path: Path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    part.replace(path)


def machine() -> dict:
    """What a reader of a measurement wants to know of the machine."""
    cpu = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "load": os.getloadavg()[0]}
