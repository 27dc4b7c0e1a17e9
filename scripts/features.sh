#!/usr/bin/env bash
# Print the cargo features that this machine can build, as a list separated by commas.
#
# Cranelift needs nothing, nor does cuda, which opens the driver at run time; LLVM needs the development files of
# LLVM 22 (see setup.sh).
# KS_FEATURES, where it is set and not empty, is printed instead.
set -euo pipefail

# As the crate llvm-sys looks for it: under the prefix alone where one is set, else on PATH.
llvm_22() {
    local config
    for config in ${LLVM_SYS_221_PREFIX:+"$LLVM_SYS_221_PREFIX/bin/llvm-config"} llvm-config-22 llvm-config; do
        case "$("$config" --version 2>/dev/null)" in 22.*) return 0 ;; esac
        [ -z "${LLVM_SYS_221_PREFIX:-}" ] || return 1
    done
    return 1
}

# LLVM is C++: its library for linking comes with g++.
libstdcxx() { [ "$(cc -print-file-name=libstdc++.so 2>/dev/null)" != libstdc++.so ]; }

if [ -n "${KS_FEATURES:-}" ]; then
    echo "$KS_FEATURES"
elif llvm_22 && libstdcxx; then
    echo cranelift,llvm,cuda
else
    echo cranelift,cuda
fi
