#!/usr/bin/env bash
# Runs every test and ends with one line over all of them: N passed, N failed.
#
#   tests/run.sh            everything, as the gate does
#   tests/run.sh units it   only these kinds
#
# Kinds, in the order they run: lint compile units fuzz build it chaos e2e. The whole output of each goes to a file under
# $CARGO_TARGET_DIR/test-logs; what is printed here is a line per kind and every failure. A kind of which nothing is heard
# for too long is ended, and each test that had not ended counts as failed.
set -uo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-$PWD/target}
logs=$target/test-logs
mkdir -p "$logs"
kinds=${*:-lint compile units fuzz build it chaos e2e}
# Whichever cluster the reader works with, the tests have one of their own.
export CLUSTER=tieredcache-e2e
passed=0
failed=0

# The longest silence: of whatever compiles or installs for the first time on a machine, and of tests at work.
build_silence_s=2400
test_silence_s=480

# Adds up what cargo's test harness said in a log; a kind that ended badly without saying so counts as one failure.
count() { # kind log status seconds
    local kind=$1 log=$2 status=$3 seconds=$4 ok bad steadied
    ok=$(awk '/^test result:/ { n += $4 } END { print n + 0 }' "$log")
    bad=$(awk '/^test result:/ { n += $6 } END { print n + 0 }' "$log")
    # An ignored test proves nothing; there are to be none.
    bad=$((bad + $(awk '/^test result:/ { n += $8 } END { print n + 0 }' "$log")))
    if [ "$((ok + bad))" = 0 ] && grep -q '^test .* \.\.\. ' "$log"; then
        # It was ended before it could add up.
        ok=$(grep -c '^test .* \.\.\. ok$' "$log")
        bad=$(($(grep -c '^test .* \.\.\. FAILED$' "$log") + $(unended "$log" | wc -l)))
    fi
    if [ "$((ok + bad))" = 0 ]; then
        if [ "$status" = 0 ]; then ok=1; else bad=1; fi
    elif [ "$status" != 0 ] && [ "$bad" = 0 ]; then
        bad=1
    fi
    if [ "$bad" != 0 ] && steadied=$(again "$kind" "$log"); then
        ok=$((ok + steadied))
        bad=$((bad > steadied ? bad - steadied : 0))
    fi
    passed=$((passed + ok))
    failed=$((failed + bad))
    printf '%-8s %5d passed %4d failed %6d s   %s\n' "$kind" "$ok" "$bad" "$seconds" "$log"
    sed 's/^/unsteady: failed beside others, passed by itself: /' "$log.steadied" 2>/dev/null
    if [ "$bad" != 0 ]; then
        grep -E '^(test .* \.\.\. (FAILED|ignored)|error|ended: )' "$log" | head -40
        reasons "$log"
        # Cargo's harness says why; other programs do so at their end.
        grep -q '^failures:$' "$log" || { echo "--- the last lines of $log"; tail -n 60 "$log"; }
    fi
}

# What failed tests said: their seeds and panics, without the stacks.
reasons() { # log
    awk '/^---- .* stdout ----$/ { shown = 1; lines = 0 }
        /^failures:$|^stack backtrace:$/ { shown = 0 }
        shown && ++lines <= 40 { print substr($0, 1, 2000) }' "$1"
}

# Runs tests that failed once more, one by one: they wait for real programs, on a machine that may have been busy. How
# many pass; they are named as unsteady. Only a few get it, and none that judges what a cache answered or how soon
# something happened, where one wrong answer is enough.
again() { # kind log
    local kind=$1 log=$2 names
    case $kind in it | e2e) ;; *) return 1 ;; esac
    names=$(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log" | cat - <(unended "$log") | sort -u)
    [ -n "$names" ] && [ "$(wc -l <<<"$names")" -le 4 ] || return 1
    ! grep -qvE '^(chart|clients|cluster|crds|embedded|node|operator|telemetry|trouble|tour)::' <<<"$names" || return 1
    ! grep -vE '^crds::' <<<"$names" | grep -qE '_within_|_cut_off_' || return 1
    : >"$log.steadied"
    for name in $names; do
        $cargo_test --test "$kind" -- --exact "$name" >"$log.again" 2>&1 </dev/null &
        # What the test prints stands between its name and the verdict.
        attend $! "$log.again" "$test_silence_s" && grep -q '^test result: ok. 1 passed' "$log.again" &&
            echo "$name" >>"$log.steadied"
    done
    wc -l <"$log.steadied"
}

# Tests that ran for over a minute and of which no end is in the log.
unended() { # log
    sed -n 's/^test \(.*\) has been running for over 60 seconds$/\1/p' "$1" | sort -u | while read -r test; do
        grep -q "^test $test \.\.\. " "$1" || echo "$test"
    done
}

# Waits for a process; ends it, and says what was going on, when its log has not grown for too long.
attend() { # pid log silence_s
    local pid=$1 log=$2 silence=$3 tests
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        [ "$(($(date +%s) - $(stat -c %Y "$log")))" -gt "$silence" ] || continue
        {
            echo "=== nothing was heard for $silence s; what runs now:"
            ps -o pid,ppid,stat,etimes,wchan:24,args --forest --ppid 2 -p 2 --deselect | cut -c1-200
            unended "$log" | sed 's/^/ended: /'
        } >>"$log"
        # The test program alone: what it started ends with it or is taken down by its caretakers.
        tests=$(pgrep -P "$pid" || true)
        # shellcheck disable=SC2086 — a list of words is meant.
        kill -KILL ${tests:-$pid} 2>/dev/null
        sleep 5
        kill -KILL "$pid" 2>/dev/null
    done
    wait "$pid"
}

run() { # kind command...
    local kind=$1 log=$logs/$1.log start=$SECONDS status=0 silence=$test_silence_s
    rm -f "$log.steadied"
    shift
    case $kind in lint | compile | units | build | programs | images) silence=$build_silence_s ;; esac
    echo "$kind: $*"
    "$@" >"$log" 2>&1 </dev/null &
    attend $! "$log" "$silence" || status=$?
    count "$kind" "$log" "$status" $((SECONDS - start))
}

rocks=tests/with-rocksdb.sh
# Always the whole workspace, so that every kind shares one set of compiled dependencies.
cargo_test="$rocks cargo test --locked --workspace --no-fail-fast"

for kind in $kinds; do
    case $kind in
    lint) run lint make --no-print-directory lint ;;
    # All of it at once: most of these programs take one core to compile.
    compile)
        run compile $cargo_test --no-run
        # The kind `build` waits for it. Its last steps take one core, as do the longest of the fast tests.
        nice -n 10 make --no-print-directory build >"$logs/build-early.log" 2>&1 </dev/null &
        # On a new machine the programs of the test cluster take twenty minutes. They may have what the steps before
        # `it`, which waits for them, leave of the two cores.
        nice -n 10 cargo run --locked --quiet --bin cluster -- build >"$logs/programs-early.log" 2>&1 </dev/null &
        ;;
    units) MODEL_OPERATIONS=${MODEL_OPERATIONS:-1000000} run units $cargo_test --lib --bins --test tidy ;;
    fuzz) run fuzz $cargo_test --test fuzz ;;
    build) run build make --no-print-directory build ;;
    # They mostly wait, for processes, timeouts and the API server. More of them at once make the machine so busy that
    # those about time are not steady.
    it)
        run programs cargo run --locked --quiet --bin cluster -- build
        run it $cargo_test --test it -- --test-threads=6
        ;;
    chaos) run chaos tests/chaos/run.sh ;;
    e2e)
        # Down first: what an interrupted run has left up goes on with the operator of that time, whose image has the
        # same tag as the one that is to be tested.
        run images make --no-print-directory cluster-down cluster-up images
        run e2e $cargo_test --test e2e -- --test-threads=64
        run down make --no-print-directory cluster-down
        ;;
    *)
        echo "unknown kind of test: $kind (known: lint compile units fuzz build it chaos e2e)" >&2
        exit 2
        ;;
    esac
done

echo "total: $SECONDS s"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
