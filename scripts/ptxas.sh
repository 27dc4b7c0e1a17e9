#!/usr/bin/env bash
# Installs NVIDIA's PTX assembler from its PyPI wheel, for the tests that assemble PTX.
# usage: scripts/ptxas.sh [VERSION]      VERSION defaults to 13.0.88 (PTX ISA 9.0); 12.x.y takes the CUDA 12 wheel
# Puts ptxas into .venv/ptxas/bin and prints its path; does nothing if that version is there already.
# Needs Python 3 with pip or venv, on Linux x86_64 or aarch64; no GPU, driver or toolkit.
# The licence is NVIDIA's: fetched by whoever tests, never part of this repository.
set -euo pipefail
cd "$(dirname "$0")/.."

version=${1:-13.0.88}
home=.venv/ptxas
case $version in
    12.*) package=nvidia-cuda-nvcc-cu12 ;;
    *) package=nvidia-cuda-nvcc ;;
esac

if [ -x "$home/bin/ptxas" ] && [ "$(cat "$home/version" 2>/dev/null)" = "$version" ]; then
    echo "$PWD/$home/bin/ptxas"
    exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=python3
if ! "$python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv "$work/venv"
    python=$work/venv/bin/python3
fi
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --dest "$work/wheel" "$package==$version" >&2
mkdir -p "$home/bin"
"$python" - "$work/wheel" "$work/ptxas" <<'PY'
import pathlib, sys, zipfile

folder, target = map(pathlib.Path, sys.argv[1:])
(wheel,) = folder.glob("*.whl")
with zipfile.ZipFile(wheel) as archive:
    (member,) = [name for name in archive.namelist() if name.endswith("/bin/ptxas")]
    target.write_bytes(archive.read(member))
PY
chmod +x "$work/ptxas"
"$work/ptxas" --version >/dev/null
mv "$work/ptxas" "$home/bin/ptxas"
echo "$version" >"$home/version"
echo "$PWD/$home/bin/ptxas"
