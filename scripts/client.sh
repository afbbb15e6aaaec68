#!/bin/sh
# Install the Claude Code client that tests/client drive, into the user's cache, and print the path of its program. Safe to run again and at once.
# npm may be told to run no install scripts, and the client needs its own: run it by name.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

version=2.1.330
folder=${XDG_CACHE_HOME:-$HOME/.cache}/rlm-sandbox/claude-code-$version
program=$folder/node_modules/.bin/claude

if [ ! -x "$program" ]; then
    command -v npm >/dev/null 2>&1 || stop "npm is needed to install the Claude Code client" \
        "sudo apt-get install -y --no-install-recommends npm    (or nodejs.org)"
    draft=$folder.$$
    trap 'rm -rf "$draft"' EXIT
    mkdir -p "$draft"
    printf '{"private": true}\n' >"$draft/package.json"
    npm install --prefix "$draft" --no-audit --no-fund --loglevel error --ignore-scripts "@anthropic-ai/claude-code@$version" </dev/null >&2
    (cd "$draft" && node node_modules/@anthropic-ai/claude-code/install.cjs) </dev/null >&2
    mv "$draft" "$folder" 2>/dev/null || [ -x "$program" ] # somebody else was faster
fi
# The client's own sandbox, in which one test runs it, is made of these two.
if { ! command -v bwrap || ! command -v socat; } >/dev/null 2>&1 && is_root && has_apt; then
    apt_install bubblewrap socat || say "note: without bubblewrap and socat the client cannot be tested in its own sandbox"
fi
printf '%s\n' "$program"
