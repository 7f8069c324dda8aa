#!/usr/bin/env bash
# Trusts the tests only as far as they find bugs: plants one bug after the other into a copy of the tree and expects the
# named unit tests to fail. Ends with `N of N mutants caught`.
#
#   tests/mutants/run.sh         every mutant
#   tests/mutants/run.sh 03 11   only these
#   tests/mutants/run.sh model   those that the model test finds, by the model test alone
#
# A mutant is a patch of one line. Its head says what is broken (`What:`), which unit tests must notice (`Filter:`, as
# for cargo test) and, where that was tried, whether the model test does (`Model: yes`). The copy is a git worktree of the
# last commit; it is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/../.."

root=$PWD
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
# As many as `make test` where they alone are to notice.
export MODEL_OPERATIONS=${MODEL_OPERATIONS:-$([ "${1:-}" = model ] && echo 1000000 || echo 50000)}
log=$CARGO_TARGET_DIR/test-logs/mutants.log
mkdir -p "$(dirname "$log")"
: >"$log"

by_model=
[ "${1:-}" != model ] || { by_model=coordinator::tests::model; shift; }
mutants=()
for patch in tests/mutants/*.patch; do
    number=$(basename "$patch" | cut -d- -f1)
    [ -z "$by_model" ] || grep -q '^Model: yes' "$patch" || continue
    if [ $# = 0 ] || [[ " $* " == *" $number "* ]]; then mutants+=("$root/$patch"); fi
done
[ ${#mutants[@]} != 0 ] || { echo "there is no mutant of that number" >&2; exit 2; }

# Not below the tree: cargo would join the settings of both and compile everything anew.
place=$(mktemp -d)
tree=$place/tree
clean() {
    cd "$root"
    git worktree remove --force "$tree" 2>/dev/null || true
    git worktree prune
    rm -rf "$place"
}
trap clean EXIT
git worktree add --quiet --detach "$tree" HEAD
cd "$tree"

head_of() { sed -n "s/^$1: //p" "$2" | head -1; }
filter_of() { if [ -n "$by_model" ]; then echo "$by_model"; else head_of Filter "$1"; fi; }
# Always the whole workspace, so that all share one set of compiled dependencies.
cargo_test() { tests/with-rocksdb.sh cargo test --locked --workspace --lib "$@" >>"$log" 2>&1 </dev/null; }

filters=()
for mutant in "${mutants[@]}"; do filters+=("$(filter_of "$mutant")"); done
echo "without a mutant"
cargo_test -- "${filters[@]}" || { echo "the tests fail without a mutant: $log" >&2; exit 1; }

caught=0
for mutant in "${mutants[@]}"; do
    name=$(basename "$mutant" .patch)
    filter=$(filter_of "$mutant")
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
