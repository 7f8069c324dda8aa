#!/usr/bin/env bash
# Runs every test and ends with one line over all of them: N passed, N failed.
#
#   tests/run.sh            everything, as the gate does
#   tests/run.sh units it   only these kinds
#
# Kinds, in the order they run: lint units build fuzz it chaos e2e. The whole output of each goes to a file under
# $CARGO_TARGET_DIR/test-logs; what is printed here is a line per kind and every failure.
set -uo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
logs=$target/test-logs
mkdir -p "$logs"
kinds=${*:-lint units build fuzz it chaos e2e}
passed=0
failed=0

# Adds up what cargo's test harness said in a log; a kind that ended badly without saying so counts as one failure.
count() { # kind log status seconds
    local kind=$1 log=$2 status=$3 seconds=$4 ok bad
    ok=$(awk '/^test result:/ { n += $4 } END { print n + 0 }' "$log")
    bad=$(awk '/^test result:/ { n += $6 } END { print n + 0 }' "$log")
    # An ignored test proves nothing; there are to be none.
    bad=$((bad + $(awk '/^test result:/ { n += $8 } END { print n + 0 }' "$log")))
    if [ "$((ok + bad))" = 0 ]; then
        if [ "$status" = 0 ]; then ok=1; else bad=1; fi
    elif [ "$status" != 0 ] && [ "$bad" = 0 ]; then
        bad=1
    fi
    passed=$((passed + ok))
    failed=$((failed + bad))
    printf '%-6s %5d passed %4d failed %6d s   %s\n' "$kind" "$ok" "$bad" "$seconds" "$log"
    if [ "$bad" != 0 ]; then
        grep -E '^(test .*(FAILED|ignored)|error|---- )' "$log" | head -40
        echo "--- the last lines of $log"
        tail -n 60 "$log"
    fi
}

run() { # kind command...
    local kind=$1 log=$logs/$1.log start=$SECONDS status=0
    shift
    echo "$kind: $*"
    "$@" >"$log" 2>&1 </dev/null || status=$?
    count "$kind" "$log" "$status" $((SECONDS - start))
}

rocks=tests/with-rocksdb.sh
# Always the whole workspace, so that every kind shares one set of compiled dependencies.
cargo_test="$rocks cargo test --locked --workspace --no-fail-fast"

for kind in $kinds; do
    case $kind in
    lint) run lint make --no-print-directory lint ;;
    units) MODEL_OPERATIONS=${MODEL_OPERATIONS:-1000000} run units $cargo_test --lib --bins --test tidy ;;
    build) run build make --no-print-directory build ;;
    fuzz) run fuzz $cargo_test --test fuzz ;;
    # They mostly wait, for processes, timeouts and the API server.
    it) run it $cargo_test --test it -- --test-threads=4 ;;
    chaos) run chaos tests/chaos/run.sh ;;
    e2e)
        export CLUSTER=tieredcache-e2e
        run images make --no-print-directory cluster-up images
        run e2e $cargo_test --test e2e -- --test-threads=64
        run down make --no-print-directory cluster-down
        ;;
    *)
        echo "unknown kind of test: $kind (known: lint units build fuzz it chaos e2e)" >&2
        exit 2
        ;;
    esac
done

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
