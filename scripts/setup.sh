#!/bin/sh
# Make .venv hold exactly the locked packages (every one checked against its hash) and this package, editable.
# Safe to run again: pip leaves what already fits alone.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

make_venv .venv
say "installing the locked packages"
pip_install .venv --only-binary :all: --require-hashes -r requirements/dev.txt
pip_install .venv --no-deps --no-build-isolation -e .

# The local model's library is linked against OpenMP, which a minimal Debian lacks.
if ! .venv/bin/python -c 'import xllamacpp' >/dev/null 2>&1; then
    if is_root && has_apt; then
        apt_install libgomp1 libstdc++6
    else
        say "note: the local model cannot run until its library loads: sudo apt-get install -y libgomp1"
    fi
fi
touch .venv/.ready
