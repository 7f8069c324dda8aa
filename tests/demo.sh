#!/usr/bin/env bash
# The tour of the product on a real Kubernetes: every command is shown before it runs, and every claim is checked, so
# the tour is also a test. Safe to repeat.
#
#   tests/demo.sh         brings up a cluster of its own (three nodes in network namespaces) and tours it
#   tests/demo.sh down    removes all that the tour made
#
# CLUSTER=current uses your own kubectl context instead. Its machines must be able to get the images: load the archives
# that `make images` writes, or push them and set OPERATOR_IMAGE, NODE_IMAGE (both without tag) and CLIENT_IMAGE. The
# tour marks the namespaces that it makes; it installs nothing over what is there without the mark, and `down` removes
# nothing else. The definition of the resource stays as long as there is a TieredCache of somebody else.
set -euo pipefail
cd "$(dirname "$0")/.."

cluster=${CLUSTER:-tieredcache}
release=tieredcache
operator_namespace=tieredcache-system
namespace=tieredcache-demo
definition=tieredcaches.tieredcache.io
mark=tieredcache.io/made-by=demo
operator_image=${OPERATOR_IMAGE:-localhost/tieredcache/operator}
node_image=${NODE_IMAGE:-localhost/tieredcache/cache-node}
# A hash of what is in the operator's image, where the tour builds it.
operator_content=

if [ "$cluster" = current ]; then
    client_image=${CLIENT_IMAGE:-redis:7}
    kubectl() { command kubectl "$@"; }
    helm() { command helm "$@"; }
else
    client_image=${CLIENT_IMAGE:-localhost/tools:1}
    tool=${CARGO_TARGET_DIR:-target}/debug/cluster
    kubectl() { "$tool" --name "$cluster" kubectl "$@"; }
    helm() { "$tool" --name "$cluster" helm "$@"; }
fi

started=$SECONDS
step_started=$SECONDS
step_number=0

# Announces a step; the time of the one before is printed with it.
step() {
    [ "$step_number" = 0 ] || printf '   (%d s)\n' $((SECONDS - step_started))
    step_number=$((step_number + 1))
    step_started=$SECONDS
    printf '\n%d. %s\n' "$step_number" "$*"
}

# Shows a command and runs it.
show() {
    case $1 in
    redis) printf '   $ kubectl -n %s exec client -- redis-cli -h %s\n' "$namespace" "${*:2}" ;;
    *) printf '   $ %s\n' "$*" ;;
    esac
    "$@" 2>&1 | sed 's/^/     /'
}

refuse() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

fail() {
    printf '\nThe tour stopped: %s\n' "$*" >&2
    [ "$cluster" = current ] || printf 'Look closer with: make kubectl CLUSTER=%s ARGS="-n %s describe tc,pods"\n' "$cluster" "$namespace" >&2
    exit 1
}

expect() { # what wanted got
    [ "$2" = "$3" ] || fail "$1: expected '$2', got '$3'"
}

# redis-cli in the client pod.
redis() { # host arguments...
    local host=$1
    shift
    kubectl -n "$namespace" exec client -- redis-cli -h "$host" "$@"
}

ready() { # replicas
    kubectl -n "$namespace" wait tc/demo --for=jsonpath='{.status.readyReplicas}'="$1" --timeout=120s >/dev/null ||
        fail "the cache did not get $1 ready nodes"
    kubectl -n "$namespace" wait tc/demo --for=condition=Ready --timeout=120s >/dev/null || fail "the cache did not become ready"
}

# Whether a namespace of this name is there and carries the tour's mark.
is_ours() { [ -n "$(kubectl get namespace -l "$mark" --field-selector "metadata.name=$1" -o name)" ]; }

exists() { [ -n "$(kubectl get "$1" "$2" --ignore-not-found -o name)" ]; }

# The reader's own cluster must be reachable.
reach() {
    for program in kubectl helm; do
        [ -n "$(type -P "$program")" ] || refuse "CLUSTER=current uses $program, which is not on your PATH"
    done
    local context answer
    context=$(kubectl config current-context 2>/dev/null) || refuse "CLUSTER=current uses your kubectl context, and none is set"
    answer=$(kubectl get --raw /readyz --request-timeout=10s 2>&1) || refuse "the context $context does not answer: $answer"
    printf 'Your context %s\n' "$context"
}

# Nothing of the reader's may be in the tour's way.
stand_back() {
    for name in "$operator_namespace" "$namespace"; do
        ! exists namespace "$name" || is_ours "$name" ||
            refuse "the namespace $name is there and not the tour's, which needs the name"
    done
    ! exists crd "$definition" || is_ours "$operator_namespace" ||
        refuse "this cluster has the resource TieredCache already, whose operator the tour would compete with; the steps are in README.md, Tutorial"
}

make_namespace() {
    kubectl create namespace "$1" --dry-run=client -o yaml | kubectl label --local -f - "$mark" -o yaml |
        kubectl apply -f - >/dev/null
}

down() {
    if [ "$cluster" != current ]; then
        make --no-print-directory cluster-down CLUSTER="$cluster"
        return
    fi
    reach
    # The caches first, while there is an operator that knows what goes with them.
    if is_ours "$namespace"; then kubectl delete namespace "$namespace"; fi
    if ! is_ours "$operator_namespace"; then
        echo "Nothing else of the tour is there."
        return
    fi
    helm uninstall "$release" -n "$operator_namespace" --ignore-not-found --wait --timeout 120s
    if exists crd "$definition"; then
        others=$(kubectl get "$definition" --all-namespaces -o name)
        if [ -z "$others" ]; then
            kubectl delete crd "$definition"
        else
            printf 'The resource stays, for what the tour did not make: %s\n' "$others"
        fi
    fi
    kubectl delete namespace "$operator_namespace"
}

case ${1:-up} in
up) ;;
down)
    down
    exit
    ;;
*)
    echo "unknown argument: $1 (known: up, down)" >&2
    exit 2
    ;;
esac

if [ "$cluster" = current ]; then
    reach
    stand_back
else
    step "A real Kubernetes on this machine (its programs are built once, 15 to 25 minutes; later 15 seconds)"
    make --no-print-directory cluster-up CLUSTER="$cluster"
    show kubectl get nodes
    step "Images of the operator and the cache node, loaded on every node"
    archives=$(make --no-print-directory images CLUSTER="$cluster")
    printf '%s\n' "$archives"
    # An image that was built again has the tag of before, which Helm takes for no change: the old operator would go on.
    # The name of its archive ends in a hash of its content; on the pods, it replaces them when there is another image.
    operator_content=$(awk '$1 ~ /\/operator:/ { gsub(/.*-|\.tar$/, "", $NF); print $NF }' <<<"$archives")
    [ -n "$operator_content" ] || fail "no archive of the operator's image is named"
fi

step "The operator, installed with Helm"
make_namespace "$operator_namespace"
# shellcheck disable=SC2086 — the annotation is two words, or none.
show helm upgrade --install "$release" charts/tieredcache-operator -n "$operator_namespace" --create-namespace \
    --set image.repository="$operator_image" --set nodeImage.repository="$node_image" \
    --set rbac.managedRedisPasswords=true \
    ${operator_content:+--set-string podAnnotations.image-content=$operator_content} --wait --timeout 120s ||
    fail "the operator did not start; can your machines get $operator_image? README.md, Images, tells how"
show kubectl -n "$operator_namespace" get pods

step "A cache of three nodes, written in YAML"
make_namespace "$namespace"
sed 's/^/     /' tests/demo/cache.yaml
show kubectl -n "$namespace" apply -f tests/demo/cache.yaml
kubectl -n "$namespace" scale tc/demo --replicas=3 >/dev/null
ready 3
show kubectl -n "$namespace" get tc,pods,pvc

step "A stock Redis client stores and reads through the Service"
kubectl -n "$namespace" run client --image="$client_image" --image-pull-policy=IfNotPresent --restart=Never \
    --command --dry-run=client -o yaml -- sleep 86400 | kubectl apply -n "$namespace" -f - >/dev/null
kubectl -n "$namespace" wait pod/client --for=condition=Ready --timeout=120s >/dev/null || fail "the client pod did not start"
show redis demo set greeting "hello from the fleet" EX 600
show redis demo get greeting
show redis demo ttl greeting
expect "the value" "hello from the fleet" "$(redis demo get greeting)"

step "Its pod is deleted and comes back warm: the value is read from the volume, with the life that was left"
for holder in demo-0 demo-1 demo-2; do
    [ "$(redis "$holder.demo-nodes" exists greeting)" = 1 ] && break
done
echo "     (stored on $holder)"
show kubectl -n "$namespace" delete pod "$holder"
for _ in {1..300}; do kubectl -n "$namespace" get pod "$holder" >/dev/null 2>&1 && break; sleep 0.2; done
kubectl -n "$namespace" wait "pod/$holder" --for=condition=Ready --timeout=120s >/dev/null || fail "$holder did not come back"
show redis "$holder.demo-nodes" get greeting
show redis "$holder.demo-nodes" ttl greeting
expect "the value after the restart" "hello from the fleet" "$(redis "$holder.demo-nodes" get greeting)"
left=$(redis "$holder.demo-nodes" ttl greeting)
[ "$left" -gt 0 ] && [ "$left" -lt 600 ] || fail "the value has $left s left; expected less than 600"

step "Scaled with kubectl, up and down"
show kubectl -n "$namespace" scale tc/demo --replicas=5
ready 5
show kubectl -n "$namespace" get tc
show kubectl -n "$namespace" scale tc/demo --replicas=3
ready 3

step "Metrics, per layer"
kubectl get --raw "/api/v1/namespaces/$namespace/pods/$holder:9090/proxy/metrics" >"${TMPDIR:-/tmp}/demo-metrics.$$"
grep -E '^tieredcache_layer_(requests_total|entries|bytes)' "${TMPDIR:-/tmp}/demo-metrics.$$" | grep -v ' 0$' | sed 's/^/     /' || fail "no metrics"
rm -f "${TMPDIR:-/tmp}/demo-metrics.$$"

step "The health of every layer, as the status of the resource"
ready 3
kubectl -n "$namespace" get tc demo -o jsonpath='{range .status.layers[*]}{.name}{"\t"}{.health}{"\t"}{.nodesHealthy}{" of "}{.nodesTotal}{" nodes\n"}{end}' | sed 's/^/     /'
kubectl -n "$namespace" get tc demo -o jsonpath='{range .status.conditions[*]}{.type}{"="}{.status}{"\t"}{.message}{"\n"}{end}' | sed 's/^/     /'
printf '   (%d s)\n' $((SECONDS - step_started))

printf '\nThe tour took %d s. What runs now:\n\n' $((SECONDS - started))
kubectl -n "$namespace" get tc | sed 's/^/  /'
if [ "$cluster" != current ]; then
    printf '\nPlay on:\n\n  export KUBECONFIG=%s\n' "$("$tool" --name "$cluster" kubeconfig)"
    printf '  export PATH="%s$PATH"      # kubectl and helm of this Kubernetes\n' "$("$tool" build --list | awk '/kubernetes-|helm-/ { printf "%s:", $2 }')"
fi
cat <<TEXT

  kubectl -n $namespace describe tc demo                    # conditions, events: why things are as they are
  kubectl explain tc.spec.memory                                # every setting, with unit and default
  kubectl -n $namespace exec -it client -- redis-cli -h demo     # talk to the cache
  kubectl -n $namespace patch tc demo --type merge -p '{"spec":{"memory":{"policy":"TinyLfu"}}}' && kubectl -n $namespace get pods -w
  kubectl -n $namespace delete pod demo-1                        # it comes back warm
  make demo-down CLUSTER=$cluster                                # removes all of this
TEXT
