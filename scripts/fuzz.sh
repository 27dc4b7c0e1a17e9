#!/usr/bin/env bash
# Coverage-guided fuzzing on the stable toolchain.
#
#   scripts/fuzz.sh build                      build the targets with coverage instrumentation
#   scripts/fuzz.sh seed DIR MODEL.onnx...     a corpus in DIR/{import,text}: the repository's, these models, the filetests
#   scripts/fuzz.sh run import|text DIR [...]  fuzz with the corpus in DIR; further arguments go to libFuzzer
#   scripts/fuzz.sh minimise import|text DIR   make DIR the repository's corpus, as few bytes as give its coverage
#
# A finding is written to DIR/crash-*, and `run import DIR/crash-X` shows it again.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
fuzz=$root/tests/fuzz
target=${CARGO_TARGET_DIR:-$root/target}/fuzz
triple=$(rustc -vV | sed -n 's/^host: //p')

build() {
    # the pass that cargo-fuzz turns on with -Zsanitizer-coverage; stable takes it by name
    local flags=(-Cpasses=sancov-module -Ccodegen-units=1 -Clink-dead-code --cfg fuzzing)
    for f in level=4 inline-8bit-counters pc-table trace-compares; do
        flags+=("-Cllvm-args=-sanitizer-coverage-$f")
    done
    # --target keeps the flags from build scripts and procedural macros
    RUSTFLAGS="${flags[*]}" cargo build --release --manifest-path "$fuzz/Cargo.toml" \
        --target "$triple" --target-dir "$target" --bins
}

# with_choice BYTE FILE OUT: the file behind the byte of options
with_choice() { { printf "\\x$1"; cat "$2"; } >"$3"; }

seed() {
    local dir=$1 n=0 f name
    shift
    mkdir -p "$dir/import" "$dir/text"
    cp "$fuzz"/corpus/import/* "$dir/import/" 2>/dev/null || true
    cp "$fuzz"/corpus/text/* "$dir/text/" 2>/dev/null || true
    for f in "$@"; do
        [ "$(stat -c %s "$f")" -lt 65000 ] || continue
        n=$((n + 1))
        with_choice "0$((n % 8))" "$f" "$dir/import/seed-$n-$(basename "$f")"
    done
    for f in "$root"/tests/filetests/*/*.txt; do
        name=$(basename "$(dirname "$f")")-$(basename "$f")
        sed -e 1d -e '/^====$/,$d' "$f" >"$dir/text/.body"
        local form=00
        case $(head -1 "$f") in *kernel) form=01 ;; *loops) form=02 ;; esac
        with_choice "$form" "$dir/text/.body" "$dir/text/in-$name"
        sed -e '1,/^====$/d' "$f" >"$dir/text/.body"
        case $(head -1 "$f") in
        "test kernels") with_choice 01 "$dir/text/.body" "$dir/text/out-$name" ;;
        "test loops") with_choice 02 "$dir/text/.body" "$dir/text/out-$name" ;;
        esac
    done
    rm -f "$dir/text/.body"
}

case ${1:-} in
build) build ;;
seed) shift; seed "$@" ;;
run)
    what=$2 dir=$3
    shift 3
    exec "$target/$triple/release/ks_fuzz_$what" -max_len=65536 -timeout=20 -rss_limit_mb=2048 \
        -artifact_prefix="$(dirname "$dir")/" "$dir" "$@" ;;
minimise)
    new=$(mktemp -d)
    "$target/$triple/release/ks_fuzz_$2" -max_len=4096 -merge=1 "$new" "$3"
    rm -rf "$fuzz/corpus/$2"
    mkdir -p "$fuzz/corpus"
    mv "$new" "$fuzz/corpus/$2" ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
