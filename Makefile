# Every recipe is one line; what it runs is a program or a script with its own help.
.DEFAULT_GOAL := help
.PHONY: help build test unit mutants lint demo demo-down cluster-up cluster-down cluster-status images kubeconfig kubectl bench chaos chaos-mutants chaos-pods crds run clean-cache

export CLUSTER ?= tieredcache
export NODES ?= 3
ARGS ?=
ROCKS := tests/with-rocksdb.sh
RELEASE := $(ROCKS) cargo build --locked --release
CLUSTER_TOOL = tests/setup.sh && cargo run --locked --quiet --bin cluster -- --name $(CLUSTER)

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The operator mostly waits: optimisation across crates would cost a minute of every build and be felt by nobody.
build: ## Build the operator and the cache node (release)
	$(RELEASE) -p cache-node && CARGO_PROFILE_RELEASE_LTO=off $(RELEASE) -p operator

run: ## Run one cache node on this machine: 127.0.0.1:6379, data in ./tieredcache-data
	$(ROCKS) cargo run --locked --release -p cache-node --bin cache-node

demo: ## Bring up a Kubernetes, install the operator, run a fleet and show it (CLUSTER=current: use your own context)
	@tests/demo.sh

demo-down: ## Remove everything that the demo made
	@tests/demo.sh down

test: ## Run every test: units, house rules, black box, fuzz, end to end on a real Kubernetes
	@tests/run.sh

unit: ## Run only the fast tests (no servers, no cluster)
	$(ROCKS) cargo test --locked --workspace --lib --bins --test tidy

chaos: ## Break a fleet in every way, over and over, and judge ten million reads
	@tests/chaos/run.sh long

chaos-pods: ## Delete, kill and cut off a fleet in pods on the test cluster, ten rounds (CHAOS_ROUNDS=n), and judge its reads
	@tests/chaos/pods.sh

mutants: ## Plant known bugs one by one and see the unit tests catch them (ARGS=model: the model test alone)
	@tests/mutants/run.sh $(ARGS)

chaos-mutants: ## Plant known bugs one by one and see the judge of the fleet catch them
	@tests/chaos/mutants/run.sh

lint: ## Check formatting and lints
	cargo fmt --all --check && $(ROCKS) cargo clippy --locked --workspace --all-targets -- -D warnings

cluster-up: ## Bring up the test cluster (NODES=1..5, CLUSTER=name); safe to repeat
	@$(CLUSTER_TOOL) up --nodes $(NODES)

cluster-down: ## Remove the test cluster without a trace; safe to repeat
	@$(CLUSTER_TOOL) down

cluster-status: ## Show the parts of the test cluster and their health
	@$(CLUSTER_TOOL) status

images: build ## Build the container images, print where they are, load them if the test cluster is up
	@$(CLUSTER_TOOL) images

kubeconfig: ## Print the path of the admin kubeconfig (use with make -s)
	@$(CLUSTER_TOOL) kubeconfig

kubectl: ## Run kubectl on the test cluster: make kubectl ARGS="get pods -A"
	@$(CLUSTER_TOOL) kubectl $(ARGS)

bench: ## Measure everything on an idle machine (a quarter of an hour), beside redis-server and by itself: target/bench.md
	@tests/bench/run.sh

crds: ## Generate the YAML of the resource from its Rust types
	$(ROCKS) cargo run --locked --quiet -p operator -- crds > crds/tieredcaches.yaml

clean-cache: ## Delete what is cached outside the clone (RocksDB, the parts of the test cluster)
	rm -rf "$${TIEREDCACHE_CACHE:-$$HOME/.cache/tieredcache}"
