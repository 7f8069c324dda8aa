#!/usr/bin/env bash
# Trusts the judge only as far as it finds bugs: plants one bug after the other into a copy of the tree, builds the node
# with it, and expects reads that break a promise. Ends with `N of N mutants caught`.
#
#   tests/chaos/mutants/run.sh         every mutant
#   tests/chaos/mutants/run.sh 03 51   only these
#
# A mutant is a patch: of this folder, whose line `Filter:` says which faults show the bug, or one of tests/mutants that
# has a line `Chaos:` for that. The copy is a git worktree of the last commit; it is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/../../.."

root=$PWD
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$root/target}
log=$CARGO_TARGET_DIR/test-logs/chaos-mutants.log
chaos=$CARGO_TARGET_DIR/debug/chaos
node=$CARGO_TARGET_DIR/debug/cache-node
mkdir -p "$(dirname "$log")"
: >"$log"

mutants=()
for patch in $(grep -l '^Chaos: ' tests/mutants/*.patch) tests/chaos/mutants/*.patch; do
    number=$(basename "$patch" | cut -d- -f1)
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
# Always the whole workspace, so that all share one set of compiled dependencies.
build() { tests/with-rocksdb.sh cargo build --locked --workspace --bin "$1" >>"$log" 2>&1 </dev/null; }
torment() { timeout 300 "$chaos" run --node "$node" $1 >>"$log" 2>&1 </dev/null; }

build chaos
echo "without a mutant"
build cache-node
torment "--nodes 1 --faults none,kill --cycles 2 --writes behind" || { echo "promises are broken without a mutant: $log" >&2; exit 1; }

caught=0
for mutant in "${mutants[@]}"; do
    name=$(basename "$mutant" .patch)
    how=$(head_of Chaos "$mutant")
    how=${how:-$(head_of Filter "$mutant")}
    git apply "$mutant"
    echo "=== $name" >>"$log"
    verdict=MISSED
    # One that does not compile proves nothing; a broken promise and a fleet that does not come up are two things.
    if ! build cache-node; then
        verdict="DOES NOT COMPILE"
    elif ! torment "$how" && tac "$log" | sed '/^=== /q' | grep -q '^VIOLATION'; then
        verdict=caught
        caught=$((caught + 1))
    fi
    git apply --reverse "$mutant"
    printf '%-8s %-42s %s\n' "$verdict" "$name" "$(head_of What "$mutant")"
done

echo "$caught of ${#mutants[@]} mutants caught"
[ "$caught" = ${#mutants[@]} ]
