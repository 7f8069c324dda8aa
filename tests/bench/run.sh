#!/usr/bin/env bash
# Measures everything in one go, on a machine that is otherwise idle, and writes one table with all figures, the commit
# and the command that measures each alone. About a quarter of an hour after the build.
#
#   tests/bench/run.sh [OUT]     default: target/bench.md
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-$PWD/target}
out=${1:-$target/bench.md}
rocks=tests/with-rocksdb.sh

commit=$(git rev-parse --short=12 HEAD)
git diff --quiet HEAD || commit="$commit and changes that are not committed"

$rocks cargo build --locked --release --quiet -p cache-node --bin cache-node
$rocks cargo build --locked --release --quiet -p tests --bin bench
program() { # name
    $rocks cargo bench --locked -p cache-node --bench "$1" --no-run 2>&1 | sed -n 's/^ *Executable .*(\(.*\))$/\1/p'
}
memory=$(program memory) pipeline=$(program pipeline) disk=$(program disk)
for built in "$memory" "$pipeline" "$disk"; do
    [ -x "$built" ] || { echo "a benchmark of cache-node was not built" >&2; exit 1; }
done

"$target/release/bench" all --out "$out" --commit "$commit" --slice-ms "${SLICE_MS:-250}" --pipeline "$pipeline" \
    --inside memory="$memory" --inside pipeline="$pipeline" --inside disk="$disk"
echo "$out"
