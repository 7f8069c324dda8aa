#!/usr/bin/env bash
# Breaks a fleet of cache nodes and judges every read of its clients. Needs the release program (`make build`), root,
# `redis-server` and clang. What it prints ends with `N reads checked` and a line of cargo's kind.
#
#   tests/chaos/run.sh             how long removals take, every fault once, a few random pairs, and a million reads at least
#   tests/chaos/run.sh long        every fault three times and thirty random pairs, ten million reads at least
#   tests/chaos/run.sh run --help  anything else is given to the program
set -euo pipefail
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-$PWD/target}
export CACHE_NODE=${CACHE_NODE:-$target/release/cache-node}
# The whole workspace, so that this shares the compiled dependencies of the tests.
tests/with-rocksdb.sh cargo build --locked --quiet --workspace --bin chaos

# A fleet of the plain pattern loses changes while a node is cut off; a judge who does not see that sees nothing.
control() { "$target/debug/chaos" run --kind plain --faults drop --control; }

case ${1:-short} in
short)
    control
    # Fails if one removal in a thousand takes longer than 250 ms from node to node.
    "$target/debug/chaos" propagation --removals 50000
    # A run mostly waits for a fault to end; two at once leave each as many reads as it needs.
    set -- run --reads 1000000 --pair-cycles 4 --parallel 2
    ;;
long)
    control
    set -- run --reads 10000000 --cycles 3 --pair-cycles 30
    ;;
esac
exec "$target/debug/chaos" "$@"
