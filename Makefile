# make run      build, then classify held-back digits with the example network
# make test     everything that is checked: unit tests, the ONNX suite, the examples, the scripts
# make build    the release binary, with every backend that this machine can build
# make lint     formatting and clippy, warnings being errors
# make bench    timed workloads, in release mode
# make suite    the ONNX suite alone, against tests/onnx-passing.txt
# make bless    add what newly passes to tests/onnx-passing.txt
# make clean    remove what was built
#
# `run`, `test` and `lint` share one profile (ci), so that the dependencies are compiled once.
# Settings: KS_FEATURES=cranelift (which backends to build), CARGO_TARGET_DIR, PROFILE.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

PROFILE ?= ci
TARGET := $(or $(CARGO_TARGET_DIR),target)
PROGRAM := $(TARGET)/$(PROFILE)/kernelsmith
PYTHON := .venv/bin/python

# Asked for in the recipes, after setup: it may have installed LLVM.
FEATURES = --no-default-features --features "$$(scripts/features.sh)"

# A compiler with faults in it, all of which the debugging tools have to find.
# With the features of the whole workspace, so that the dependencies are those of the other tests.
PLANTED = --workspace --test planted --no-default-features --features "$$(scripts/features.sh),planted-faults"

.PHONY: run test build lint bench suite bless clean setup program tests doctests python-tests

setup:
	@scripts/setup.sh

build: setup
	cargo build --release --bin kernelsmith $(FEATURES)

# with the stand-in driver of --device ptx-interp beside it
program: setup
	cargo build --profile $(PROFILE) --lib --bin kernelsmith --package kernelsmith \
	    --package kernelsmith-ptx-driver $(FEATURES)

run: program
	scripts/digits.sh $(PROGRAM)

test: tests doctests program python-tests
	scripts/digits.sh $(PROGRAM)
	scripts/suite.sh --bin $(PROGRAM)
	scripts/gpu-check --bin $(PROGRAM) --device ptx-interp --small --out target/gpu-check-small.json

tests: setup
	@scripts/ptxas.sh >/dev/null 2>&1 || echo "skipped: tests that assemble PTX need scripts/ptxas.sh"
	@if cargo nextest --version >/dev/null 2>&1; then \
	    set -x; cargo nextest run --cargo-profile $(PROFILE) --workspace $(FEATURES) --no-tests pass; \
	    cargo nextest run --cargo-profile $(PROFILE) $(PLANTED); \
	else \
	    set -x; cargo test --profile $(PROFILE) --workspace --lib --bins --tests $(FEATURES); \
	    cargo test --profile $(PROFILE) $(PLANTED); \
	fi

doctests: setup
	cargo test --quiet --profile $(PROFILE) --workspace --doc $(FEATURES)

python-tests:
	@scripts/venv.sh
	@if ls .venv/base-*.ready >/dev/null 2>&1; then \
	    set -x; $(PYTHON) -m unittest discover --quiet --start-directory tests/python; \
	else \
	    echo "skipped: the tests of the scripts need the Python packages of scripts/requirements.txt"; \
	fi

suite: program
	scripts/suite.sh --bin $(PROGRAM)

bless: program
	scripts/suite.sh --bin $(PROGRAM) --bless

lint: setup
	cargo fmt --all --check
	cargo clippy --quiet --profile $(PROFILE) --workspace --all-targets $(FEATURES) -- -D warnings

bench: build
	cargo bench --package kernelsmith-benches $(FEATURES)
	@scripts/venv.sh peers
	@if ls .venv/peers-*.ready >/dev/null 2>&1; then \
	    set -x; $(PYTHON) scripts/bench_models.py --build-tract --bin $(TARGET)/release/kernelsmith; \
	    $(PYTHON) scripts/bench_models.py --start --bin $(TARGET)/release/kernelsmith; \
	else \
	    echo "skipped: comparing with ONNX Runtime needs scripts/requirements-peers.txt"; \
	fi

clean:
	cargo clean
	rm -rf .venv
