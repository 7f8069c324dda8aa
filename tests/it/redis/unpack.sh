#!/bin/sh
# Unpacks packages of another release of Debian into a folder, without installing anything. They come from the mirror
# that this machine is set up with.
#
#   unpack.sh bookworm-backports FOLDER valkey-tools
set -eu
release=$1
folder=$2
shift 2

mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Component: main' 'Label: Debian' | head -n 1)
[ -n "$mirror" ] || {
    echo "error: apt knows no mirror of Debian; run apt-get update" >&2
    exit 1
}
key=/usr/share/keyrings/debian-archive-keyring.gpg
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
mkdir -p "$apt/sources" "$apt/lists/partial" "$apt/archives/partial" "$apt/packages"
echo "deb [signed-by=$key] $mirror $release main" >"$apt/sources/release.list"
# A world of its own for apt, so that the machine's lists stay as they are.
settings="-qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts=$apt/sources -o Dir::State::Lists=$apt/lists
-o Dir::Cache=$apt -o Dir::Cache::Archives=$apt/archives -o APT::Sandbox::User=root -o Acquire::Retries=3
-o APT::Update::Post-Invoke-Success::= -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false"
# shellcheck disable=SC2086 — a list of words is meant.
apt-get $settings update
cd "$apt/packages"
for package; do
    # shellcheck disable=SC2086
    apt-get $settings download "$package/$release"
done
for package in ./*.deb; do
    dpkg-deb --extract "$package" "$folder"
done
