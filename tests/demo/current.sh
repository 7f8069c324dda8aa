#!/usr/bin/env bash
# Tests the tour a second time, on the cluster that it has made ($CLUSTER) but as a reader of another machine sees it:
# through the kubectl context (CLUSTER=current). It must be safe to repeat, refuse what it can not do in plain words, and
# clean up its own things alone. Run after `tests/demo.sh`.
set -euo pipefail
cd "$(dirname "$0")/../.."

own=${CLUSTER:-tieredcache}
tool=${CARGO_TARGET_DIR:-target}/debug/cluster
kubectl() { "$tool" --name "$own" kubectl "$@"; }

programs=$("$tool" build --list | awk '/kubernetes-|helm-/ { printf "%s:", $2 }')

# The tour, as somebody runs it whose kubectl and helm are those of this cluster.
tour() {
    KUBECONFIG=$("$tool" --name "$own" kubeconfig) CLUSTER=current CLIENT_IMAGE=localhost/tools:1 PATH=$programs$PATH \
        tests/demo.sh "$@"
}

without_context() {
    KUBECONFIG=$few/kubeconfig CLUSTER=current PATH=$programs$PATH tests/demo.sh
}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

refused() { # words command...
    local words=$1 said
    shift
    ! said=$("$@" 2>&1) || fail "$* should be refused"
    [[ $said == *"$words"* ]] || fail "$* should say '$words', not: $said"
    echo "refused: $words"
}

is_gone() { [ -z "$(kubectl get "$1" "$2" --ignore-not-found -o name)" ]; }

echo "--- without kubectl, without a context"
few=$(mktemp -d)
trap 'rm -rf "$few"' EXIT
for program in bash dirname env; do ln -s "$(type -P "$program")" "$few/$program"; done
refused "kubectl, which is not on your PATH" env PATH="$few" CLUSTER=current tests/demo.sh
touch "$few/kubeconfig"
refused "none is set" without_context

echo "--- the tour again"
uid=$(kubectl -n tieredcache-demo get tc demo -o jsonpath='{.metadata.uid}')
tour
[ "$uid" = "$(kubectl -n tieredcache-demo get tc demo -o jsonpath='{.metadata.uid}')" ] || fail "the cache is another one"

echo "--- with a cache of somebody else, it takes only its own things away"
kubectl create namespace elsewhere
kubectl -n elsewhere apply -f crds/examples/memory-only.yaml
other=$(kubectl -n elsewhere get tc -o name)
kubectl -n elsewhere wait "$other" --for=condition=Ready --timeout=120s
tour down
for name in tieredcache-demo tieredcache-system; do is_gone namespace "$name" || fail "the namespace $name is still there"; done
[ "$(kubectl -n elsewhere get "$other" -o jsonpath='{.status.readyReplicas}')" -ge 1 ] || fail "$other was touched"
[ "$(kubectl -n elsewhere get pods --field-selector status.phase=Running -o name | wc -l)" -ge 1 ] || fail "the nodes of $other are gone"
tour down

echo "--- it installs nothing over what is not its own"
refused "this cluster has the resource TieredCache already" tour
kubectl create namespace tieredcache-demo
refused "the namespace tieredcache-demo is there and not the tour's" tour
tour down
! is_gone namespace tieredcache-demo || fail "the namespace of somebody else was deleted"
echo "all as it should be"
