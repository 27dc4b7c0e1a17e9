#!/usr/bin/env python3
"""Judge the logits that were computed for the held-back digits of examples/digits.

    check_digits.py OUTPUT.npy

Shows a few digits with their answers, then the share of right answers and the largest distance
from the logits that the training script computed. Exit status 1 below 97 % right or above 1e-3.
Needs nothing but Python's own library.
"""

import ast
import struct
import sys
import zipfile
from pathlib import Path

DIGITS = Path(__file__).resolve().parent.parent / "examples" / "digits"
LEAST_RIGHT = 0.97
MOST_APART = 1e-3
SHADES = " .:-=+*#%@"


def read_npy(data: bytes):
    """(shape, flat values) of a little-endian float32 or int64 .npy file."""
    assert data[:6] == b"\x93NUMPY", "not an .npy file"
    width, form = (2, "<H") if data[6] == 1 else (4, "<I")
    start = 8 + width + struct.unpack_from(form, data, 8)[0]
    header = ast.literal_eval(data[8 + width : start].decode("latin1"))
    assert not header["fortran_order"], "not in C order"
    code, size = {"<f4": ("f", 4), "<i8": ("q", 8)}[header["descr"]]
    count = (len(data) - start) // size
    return header["shape"], struct.unpack_from(f"<{count}{code}", data, start)


def rows(flat, width):
    return [flat[i : i + width] for i in range(0, len(flat), width)]


def show(images, answers, labels):
    """The images side by side, and under each what was read."""
    for y in range(8):
        pixels = ("".join(SHADES[round(p * 9)] * 2 for p in im[8 * y : 8 * y + 8]) for im in images)
        print("  " + "  ".join(pixels))
    said = (f"read {a}" + ("" if a == b else f", was {b}") for a, b in zip(answers, labels))
    print("  " + "  ".join(s.center(16) for s in said))


def main():
    shape, logits = read_npy(Path(sys.argv[1]).read_bytes())
    want_shape, want = read_npy((DIGITS / "expected.npy").read_bytes())
    _, labels = read_npy((DIGITS / "labels.npy").read_bytes())
    with zipfile.ZipFile(DIGITS / "samples.npz") as z:
        _, images = read_npy(z.read("images.npy"))
    if shape != want_shape:
        sys.exit(f"the output has shape {shape}, expected {want_shape}")
    answers = [max(range(10), key=row.__getitem__) for row in rows(logits, 10)]
    show(rows(images, 64)[:5], answers[:5], labels)
    right = sum(a == b for a, b in zip(answers, labels))
    apart = max(abs(a - b) if a == a else float("inf") for a, b in zip(logits, want))
    print(f"  {right} of {len(labels)} right ({right / len(labels):.1%}), "
          f"logits within {apart:.1e} of the training script's")
    if right < LEAST_RIGHT * len(labels) or apart > MOST_APART:
        sys.exit("that is not what the network has learnt")


if __name__ == "__main__":
    main()
