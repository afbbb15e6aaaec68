#!/bin/sh
# Install gVisor's runtime and register it with the engine as "runsc", where that needs nobody's permission.
#
# Root on Debian 12 gets the package from bookworm-backports (the one in bookworm itself hangs on current kernels), through a list of
# sources that is used once and not kept. The engine reads the new runtime on SIGHUP; it is never restarted, so no container is touched.
# Everywhere else this says what to do, and ends with 0 all the same: the default runtime needs none of it.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

CONFIG=${RUNSC_CONFIG:-/etc/docker/daemon.json}
PYTHON=${RUNSC_PYTHON:-.venv/bin/python}
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

later() {
    say "note: no gVisor runtime: $1"
    exit 0
}

registered() { docker info --format '{{json .Runtimes}}' 2>/dev/null | grep -q '"runsc"'; }

registered && exit 0
is_root || later "registering it takes root (see docs/engines.md)"
pid=$(pgrep -x dockerd | head -n 1) || true
[ -n "$pid" ] || later "no dockerd runs on this machine"

if ! command -v runsc >/dev/null 2>&1; then
    grep -q '^VERSION_CODENAME=bookworm$' /etc/os-release 2>/dev/null && has_apt && [ -e "$KEYRING" ] ||
        later "install it as gvisor.dev/docs/user_guide/install says, then run this again"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -n 1)
    [ -n "$mirror" ] || later "apt has no source for bookworm to take the backports from"
    sources=$(mktemp)
    trap 'rm -f "$sources"' EXIT
    chmod 644 "$sources"
    echo "deb [signed-by=$KEYRING] $mirror bookworm-backports main" >"$sources"
    once="-o Dir::Etc::sourcelist=$sources -o Dir::Etc::sourceparts=/dev/null -o APT::Get::List-Cleanup=0"
    say "installing runsc from bookworm-backports"
    # shellcheck disable=SC2086 - several options
    DEBIAN_FRONTEND=noninteractive apt-get $once update -qq </dev/null >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get $once install -y -qq --no-install-recommends \
            -t bookworm-backports runsc </dev/null >&2 || later "the package could not be installed"
fi

# Without cgroups to write to, the runtime can only ignore them; sessions then watch their limits by themselves, and say so.
arguments='--network=none'
probe=/sys/fs/cgroup/memory/rlm-probe-$$
[ -d /sys/fs/cgroup/memory ] || probe=/sys/fs/cgroup/rlm-probe-$$
if mkdir "$probe" 2>/dev/null; then rmdir "$probe"; else arguments="$arguments --ignore-cgroups"; fi

mkdir -p "$(dirname "$CONFIG")"
"$PYTHON" - "$CONFIG" "$(command -v runsc)" $arguments <<'EOF'
import json, os, sys
config, path, *arguments = sys.argv[1:]
try:
    with open(config, encoding="utf-8") as stream:
        known = json.load(stream)
except FileNotFoundError:
    known = {}
known.setdefault("runtimes", {})["runsc"] = {"path": path, "runtimeArgs": arguments}
with open(config + ".part", "w", encoding="utf-8") as stream:
    json.dump(known, stream, indent=2)
    stream.write("\n")
os.replace(config + ".part", config)
EOF
kill -HUP "$pid"
for _ in 1 2 3 4 5 6 7 8 9 10; do
    registered && { say "the engine knows the runtime runsc"; exit 0; }
    sleep 0.5
done
later "the engine did not take it; see its log"
