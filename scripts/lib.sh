# Shared by the set-up scripts: how they speak, how they stop, and the one way they install a system package.

say() { printf '%s\n' "$*" >&2; }

# stop WHAT FIX...: say what is wrong and the exact commands that mend it, and end.
stop() {
    say "error: $1"
    shift
    for line in "$@"; do say "  $line"; done
    exit 3
}

is_root() { [ "$(id -u)" = 0 ]; }

has_apt() { command -v apt-get >/dev/null 2>&1; }

# apt_install PACKAGE...: without questions, also where standard input is closed. Only root on a Debian-like system gets here.
apt_install() {
    say "installing with apt-get: $*"
    DEBIAN_FRONTEND=noninteractive apt-get update -qq </dev/null >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null >&2
}

suits() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
        if suits "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
}

# Debian's own python3 comes without ensurepip, which venv needs.
ensure_venv_module() {
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 && return
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if is_root && has_apt; then
        apt_install "$package"
    else
        stop "this Python cannot make virtual environments" \
            "sudo apt-get install -y $package    (or your system's package for Python's venv module)"
    fi
}

# make_venv FOLDER: a virtual environment with a Python that is new enough; one that already is stays.
make_venv() {
    suits "$1/bin/python" && return
    python=$(find_python)
    [ -n "$python" ] || stop "Python 3.11 or newer is needed" \
        "sudo apt-get install -y python3 python3-venv    (Debian 12 or newer, Ubuntu 24.04 or newer)" \
        "or name one: PYTHON=/path/to/python3.11"
    ensure_venv_module "$python"
    say "creating $1 with $("$python" --version)"
    "$python" -m venv --clear "$1"
}

# pip_install FOLDER ARGUMENTS...: --only-binary, where given, means that no package's set-up code runs. Warnings are silenced (-qq): with
# some index settings pip has one for every package.
pip_install() {
    folder=$1
    shift
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check --no-input "$@"
}
