#!/bin/sh
# Have a Chromium for the tests of reports, which are looked at in a real browser. Nothing else of the product needs one.
set -eu
cd "$(dirname "$0")/.."
. scripts/lib.sh

for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if is_root && has_apt; then
    apt_install chromium
else
    stop "the tests of reports need Chromium" "sudo apt-get install -y chromium    (or your system's package)"
fi
