#!/bin/sh
# Installs the Debian packages that building and testing need and that are missing. Says nothing when all are there.
set -eu

# What each is for: clang and libclang compile RocksDB and its bindings; buildah makes images; runc, CNI plugins,
# iptables, conntrack, iproute2 and xfsprogs run the test cluster; e2fsprogs makes volumes that fill up; redis-server is
# the yardstick and the oracle of the tests; redis-tools and python3-venv bring stock clients.
packages="clang libclang-dev buildah runc containernetworking-plugins iptables conntrack iproute2 xfsprogs e2fsprogs
procps redis-server redis-tools python3-venv"

missing=
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "error: missing Debian packages:$missing" >&2
    echo "install them with: sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
echo "installing Debian packages:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >&2
# shellcheck disable=SC2086 — a list of words is meant. RUNLEVEL=1 keeps the packages from starting their services.
RUNLEVEL=1 apt-get install -qq -y --no-install-recommends $missing >&2
