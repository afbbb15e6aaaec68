#!/bin/sh
# Make sure a Docker engine answers.
#
# An engine that answers is left alone. Where none does, root on a Debian-like system gets Debian's docker.io, started by
# the service manager if there is one and directly if not; anybody else gets the commands to run. A daemon that runs but
# does not answer is waited for and never killed: it may hold somebody's containers.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

RUN=${ENGINE_RUN:-/var/run}                     # where the daemon keeps its pid files
LOG=${ENGINE_LOG:-/var/log/dockerd.log}
PATIENCE=${ENGINE_PATIENCE:-60}                 # seconds; a first start initialises storage and takes 2 to 10 of them
SYSTEMD=${ENGINE_SYSTEMD:-/run/systemd/system}  # exists where systemd runs the machine
PYTHON=${ENGINE_PYTHON:-.venv/bin/python}

# Asked as the product asks, so that both mean the same engine.
answers() {
    "$PYTHON" -c 'from rlm_sandbox import settings; from rlm_sandbox.container.engine import Engine
Engine.connect(settings.engine_host())' >/dev/null 2>&1
}

wait_for_answer() {
    left=$1
    while [ "$left" -gt 0 ]; do
        answers && return
        sleep 1
        left=$((left - 1))
    done
    answers
}

# alive NAME PIDFILE: is the process that the file names still that program? After a reboot the number may be another's.
alive() {
    pid=$(cat "$2" 2>/dev/null) || return 1
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ]
}

# A pid file left by a killed daemon makes the next one refuse to start, or wait for a containerd that is not there.
drop_stale() {
    [ -e "$2" ] && ! alive "$1" "$2" && rm -f "$2"
    return 0
}

start_engine() {
    if [ -d "$SYSTEMD" ]; then
        systemctl start docker
        return
    fi
    drop_stale dockerd "$RUN/docker.pid"
    drop_stale containerd "$RUN/docker/containerd/containerd.pid"
    say "starting dockerd (log: $LOG)"
    setsid dockerd >>"$LOG" 2>&1 </dev/null &
}

answers && exit 0

LOCAL=unix:///var/run/docker.sock
if [ "${DOCKER_HOST:-$LOCAL}" != "$LOCAL" ]; then
    stop "no Docker engine answers at DOCKER_HOST=$DOCKER_HOST" "start it, or unset DOCKER_HOST to use this machine's"
fi

if alive dockerd "$RUN/docker.pid"; then
    say "dockerd is running but does not answer yet; waiting"
    wait_for_answer "$PATIENCE" && exit 0
    is_root || stop "a Docker engine runs, but you may not use it" \
        "sudo usermod -aG docker $(id -un)    and log in again"
    stop "dockerd runs but does not answer" "look at its log, then restart it: systemctl restart docker"
fi

if ! is_root || ! has_apt; then
    stop "no Docker engine answers" \
        "install: sudo apt-get install -y docker.io    (Debian, Ubuntu), or see docs.docker.com/engine/install" \
        "start:   sudo systemctl start docker    (or: sudo dockerd &)" \
        "access:  sudo usermod -aG docker $(id -un)    and log in again"
fi

command -v dockerd >/dev/null 2>&1 && command -v iptables >/dev/null 2>&1 || apt_install docker.io iptables
wait_for_answer 3 || {                          # the package may have started it
    alive dockerd "$RUN/docker.pid" || start_engine
    wait_for_answer "$PATIENCE" || {
        tail -n 15 "$LOG" >&2 2>/dev/null || true
        stop "dockerd did not come up in $PATIENCE s" "its last lines are above; the whole log is $LOG"
    }
}
say "the Docker engine answers"
