#!/bin/sh
# Install rlm-sandbox for the current user: a virtual environment with exactly the locked packages, one link on the PATH, and one to the skill
# where Claude Code looks for it.
#
#     sh install.sh [FOLDER]        the default folder is ~/.local/share/rlm-sandbox
#
# Running it again brings the installation up to date. To remove it: rlm-sandbox skill uninstall, then delete the folder and
# ~/.local/bin/rlm-sandbox.
set -eu
target=${1:-$HOME/.local/share/rlm-sandbox}
case "$target" in /*) ;; *) target=$(pwd)/$target ;; esac
cd "$(dirname "$0")"
. scripts/lib.sh

bin=$HOME/.local/bin

make_venv "$target/venv"
pip_install "$target/venv" --only-binary :all: --require-hashes -r requirements/local.txt -r requirements/build.txt
pip_install "$target/venv" --no-deps --no-build-isolation --force-reinstall .
mkdir -p "$bin"
ln -sf "$target/venv/bin/rlm-sandbox" "$bin/rlm-sandbox"
say "installed: $bin/rlm-sandbox"
"$bin/rlm-sandbox" skill install --format text >&2 || say "note: the skill was not installed; the command works without it"
case ":$PATH:" in
    *":$bin:"*) ;;
    *) say "note: $bin is not on your PATH yet" ;;
esac
"$bin/rlm-sandbox" doctor --format text || true
