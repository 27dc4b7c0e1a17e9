#!/usr/bin/env bash
# Make the project's Python environment, .venv, with the packages that the tests need.
#
#   scripts/venv.sh                requirements.txt
#   scripts/venv.sh peers          requirements-peers.txt as well; likewise: examples
#
# Where PyPI cannot be reached, or Python is missing, that is said and the exit status is 0:
# the steps that need Python then skip themselves. A finished environment is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "venv: $*"; }

install() { # install NAME REQUIREMENTS: once for each content of the file
    local stamp
    stamp=".venv/$1-$(cksum <"$2" | tr ' ' '-').ready"
    [ -e "$stamp" ] && return 0
    if [ ! -x .venv/bin/python ]; then
        command -v python3 >/dev/null || { say "skipped: no python3"; return 1; }
        python3 -m venv .venv || { rm -rf .venv; say "skipped: python3 cannot make environments"; return 1; }
    fi
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
        --retries 2 --timeout 20 --only-binary :all: --requirement "$2"; then
        say "skipped: the packages of $2 could not be installed (is PyPI reachable?)"
        return 1
    fi
    rm -f ".venv/$1"-*.ready
    touch "$stamp"
    say "installed the packages of $2"
}

install base scripts/requirements.txt || exit 0
for more in "$@"; do
    install "$more" "scripts/requirements-$more.txt" || exit 0
done
