#!/usr/bin/env bash
# Trusts the tests only as far as they find bugs: plants one bug after the other into a copy of the tree and expects the
# named unit tests to fail. Ends with `N of N mutants caught`.
#
#   tests/mutants/run.sh         every mutant
#   tests/mutants/run.sh 03 11   only these
#
# A mutant is a patch of one line. Its head says what is broken (`What:`) and which unit tests must notice (`Filter:`, as
# for cargo test). The copy is a git worktree of the last commit, below the target folder; it is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=$PWD
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
export MODEL_OPERATIONS=${MODEL_OPERATIONS:-50000}
tree=$CARGO_TARGET_DIR/mutants
log=$CARGO_TARGET_DIR/test-logs/mutants.log
mkdir -p "$(dirname "$log")"
: >"$log"

mutants=()
for patch in tests/mutants/*.patch; do
    number=$(basename "$patch" | cut -d- -f1)
    if [ $# = 0 ] || [[ " $* " == *" $number "* ]]; then mutants+=("$root/$patch"); fi
done
[ ${#mutants[@]} != 0 ] || { echo "there is no mutant of that number" >&2; exit 2; }

clean() {
    cd "$root"
    git worktree remove --force "$tree" 2>/dev/null || true
    git worktree prune
}
trap clean EXIT
clean
git worktree add --quiet --detach "$tree" HEAD
cd "$tree"

head_of() { sed -n "s/^$1: //p" "$2" | head -1; }
# Always the whole workspace, so that all share one set of compiled dependencies.
cargo_test() { tests/with-rocksdb.sh cargo test --locked --workspace --lib "$@" >>"$log" 2>&1 </dev/null; }

filters=()
for mutant in "${mutants[@]}"; do filters+=("$(head_of Filter "$mutant")"); done
echo "without a mutant"
cargo_test -- "${filters[@]}" || { echo "the tests fail without a mutant: $log" >&2; exit 1; }

caught=0
for mutant in "${mutants[@]}"; do
    name=$(basename "$mutant" .patch)
    filter=$(head_of Filter "$mutant")
    git apply "$mutant"
    echo "=== $name" >>"$log"
    verdict=MISSED
    # One that does not compile proves nothing; one that hangs is noticed.
    if ! cargo_test --no-run; then
        verdict="DOES NOT COMPILE"
    elif ! timeout 120 tests/with-rocksdb.sh cargo test --locked --workspace --lib -- "$filter" >"$log.one" 2>&1 </dev/null; then
        verdict=caught
        caught=$((caught + 1))
    fi
    cat "$log.one" >>"$log" 2>/dev/null || true
    git apply --reverse "$mutant"
    printf '%-8s %-42s %s\n' "$verdict" "$name" "$(head_of What "$mutant")"
done
rm -f "$log.one"

echo "$caught of ${#mutants[@]} mutants caught"
[ "$caught" = ${#mutants[@]} ]
