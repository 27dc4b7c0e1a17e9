#!/usr/bin/env bash
# Install what a fresh Debian or Ubuntu with Rust lacks: LLVM 22, a linker, Python, and the
# cargo components for linting. Whatever cannot be had is said and left out; the exit status
# is 0 all the same, since the Cranelift backend needs none of it. Safe to run again.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "setup: $*"; }
have() { command -v "$1" >/dev/null 2>&1; }

# The command line that gives root's rights, or a failure where there is none.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo && sudo -n true 2>/dev/null; then
        sudo -n "$@"
    else
        return 126
    fi
}

apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=2 \
        -o Acquire::http::Timeout=30 -o DPkg::Lock::Timeout=120 "$@" >/dev/null
}

packages_missing() {
    have cc || echo gcc libc6-dev
    has_llvm || echo llvm-22-dev g++
    if ! have python3; then
        echo python3 python3-venv
    elif ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        echo python3-venv
    fi
}

has_llvm() { KS_FEATURES='' scripts/features.sh | grep -q llvm; }

install_packages() {
    local packages package
    packages=$(packages_missing | xargs)
    [ -n "$packages" ] || return 0
    if [ -n "${KS_NO_INSTALL:-}" ]; then
        say "not installing ($packages): KS_NO_INSTALL is set"
    elif ! have apt-get; then
        say "not installing ($packages): no apt-get here"
    elif ! as_root true; then
        say "not installing ($packages): neither root nor sudo without a password"
    else
        apt_get update || say "apt-get update failed; going on with the package lists at hand"
        for package in $packages; do
            if ! apt-cache show "$package" >/dev/null 2>&1; then
                say "apt knows no package $package"
            elif apt_get install -y --no-install-recommends "$package"; then
                say "installed $package"
            else
                say "could not install $package"
            fi
        done
    fi
}

install_components() {
    local component
    for component in rustfmt clippy; do
        cargo "${component/rustfmt/fmt}" --version >/dev/null 2>&1 && continue
        if have rustup && rustup component add "$component" >/dev/null 2>&1; then
            say "installed $component"
        else
            say "no $component here; make lint will fail"
        fi
    done
}

have cargo || { say "cargo is missing: install Rust first (https://rustup.rs)"; exit 1; }
install_packages
install_components
if has_llvm; then
    say "backends: LLVM 22 and Cranelift"
else
    say "LLVM 22 was not found: building with the Cranelift backend alone"
    say "(on Debian 12 the package is llvm-22-dev, from bookworm-security)"
fi
