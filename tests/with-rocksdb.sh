#!/bin/sh
# Runs a command with RocksDB's static library taken from a cache outside the clone, building it there first if it is
# missing: about 12 minutes on two cores, once per version, instead of once per target folder. The headers come from
# the crate itself, so they can not drift from the library.
#
#   tests/with-rocksdb.sh cargo build --release
#
# A plain `cargo build` works as well; it compiles RocksDB into its own target folder.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd)
"$root/tests/setup.sh"

# Whoever has a library of their own names it, as with any program that uses the crate.
[ -z "${ROCKSDB_LIB_DIR:-}" ] || exec "$@"

version=$(awk '/^name = "librocksdb-sys"$/ { getline; gsub(/"/, "", $3); print $3 }' "$root/Cargo.lock")
compiler=$(clang --version | sed -n '1s/.*version \([0-9.]*\).*/\1/p')
cache=${TIEREDCACHE_CACHE:-$HOME/.cache/tieredcache}/rocksdb
folder=$cache/$version-clang$compiler-lz4-zstd-v2-$(uname -m)

if [ ! -f "$folder/librocksdb.a" ]; then
    mkdir -p "$cache"
    # One builder at a time; whoever waited finds the library built.
    exec 9>"$cache/lock"
    flock 9
    if [ ! -f "$folder/librocksdb.a" ]; then
        echo "building RocksDB ($version) once for this machine, about 12 minutes on two cores" >&2
        # Whoever held the lock before may have been killed.
        rm -rf "$cache"/build.*
        build=$(mktemp -d "$cache/build.XXXXXX")
        trap 'rm -rf "$build"' EXIT
        (cd "$root" && env -u ROCKSDB_LIB_DIR -u ROCKSDB_STATIC CC=clang CXX=clang++ CARGO_TARGET_DIR="$build" \
            cargo build --locked --release -p librocksdb-sys 9>&-) >&2
        mkdir -p "$folder"
        find "$build" -name librocksdb.a -exec cp {} "$folder/librocksdb.a.new" \;
        mv "$folder/librocksdb.a.new" "$folder/librocksdb.a"
        rm -rf "$build"
        trap - EXIT
    fi
    exec 9>&-
fi

export ROCKSDB_LIB_DIR="$folder" ROCKSDB_STATIC=1
exec "$@"
