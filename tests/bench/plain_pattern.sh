#!/usr/bin/env bash
# The same scenario on two fleets of three nodes with one Redis: nodes lose what they and Redis send each other for 5 s,
# while clients on every node read and change. First the plain pattern (a local cache, Redis, pub/sub to tell the
# others), then cache nodes. Prints how many reads found what had been removed or overwritten more than 3.5 s before.
#
#   tests/bench/plain_pattern.sh          SEED=… repeats the choices of a run
set -euo pipefail
cd "$(dirname "$0")/../.."
export SEED=${SEED:-1}
echo "the plain pattern: local cache + Redis + pub/sub"
tests/chaos/run.sh run --kind plain --faults drop --control --writes through
echo "TieredCache"
tests/chaos/run.sh run --faults drop --writes through
