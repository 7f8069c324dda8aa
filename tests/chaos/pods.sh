#!/usr/bin/env bash
# Torments a fleet in pods on the test cluster, CHAOS_ROUNDS times every fault (ten), and judges what stock clients read
# meanwhile. Brings the cluster of the name CLUSTER up if it is not, and leaves it: `make cluster-down` removes it.
set -euo pipefail
cd "$(dirname "$0")/../.."

export CLUSTER=${CLUSTER:-tieredcache} CHAOS_ROUNDS=${CHAOS_ROUNDS:-10}
make --no-print-directory cluster-up images
exec tests/with-rocksdb.sh cargo test --locked --workspace --test e2e -- --test-threads=1 --nocapture fleet_chaos
