# The commands of the project. `make` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)

MODULES := proto/gen/go pkg services/edge services/account services/transaction services/saga-orchestrator services/gateway deploy/local test
SERVICES := account/cmd/accountd transaction/cmd/transactiond saga-orchestrator/cmd/sagad gateway/cmd/gatewayd

.PHONY: help
help: ## List the commands
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ Run

.PHONY: demo
demo: bin/billing ## Start the whole system on embedded parts, move money, check the books, stop
	@exec bin/billing demo

.PHONY: up
up: bin/billing ## Keep the whole system running on embedded parts until Ctrl-C
	@BILLING_DIE_WITH_PARENT=1 exec bin/billing up

.PHONY: bin/billing
bin/billing:
	@[ -d "$$(go env GOMODCACHE)/github.com/jackc" ] || echo "· fetching Go modules (first time: a minute or two)"
	@echo "· building"
	@go build -o bin/billing ./deploy/local/cmd/billing

.PHONY: build
build: ## Build the four services, the all-in-one binary and the operators' tool into bin/
	@for s in $(SERVICES) edge/cmd/billing-events; do go build -o bin/ ./services/$$s || exit 1; done
	@go build -o bin/billing ./deploy/local/cmd/billing

##@ Check

.PHONY: test
test: bin/gotestsum ## Run all tests with the race detector, on a real Postgres and Kafka
	@go build -o bin/testenv ./deploy/local/cmd/testenv
	@set -o pipefail; bin/testenv bin/gotestsum --format pkgname-and-test-fails --format-hide-empty-pkg --jsonfile bin/test.json -- -race -timeout 9m work | tee bin/test.log; \
	  code=$$?; echo; grep -oE '"Output":"(e2e|kafka): [^"\\]*' bin/test.json | cut -d'"' -f4; grep '^DONE' bin/test.log; exit $$code

.PHONY: fuzz
fuzz: bin/billing ## Fuzz the REST API by its OpenAPI document for DURATION (60s)
	@DURATION=$(or $(DURATION),60s) deploy/scripts/fuzz.sh

# What chaos draws from, and how long chaos-kafka leaves Kafka away.
SEED ?= 42
AWAY ?= 2m
EVENT_STORE ?= postgres

.PHONY: bin/chaos
bin/chaos:
	@go build -o bin/chaos ./test/chaos

.PHONY: chaos
chaos: bin/chaos ## Hurt the real processes, Postgres and Kafka under load for DURATION (60s), by SEED, on EVENT_STORE, and audit what they left
	@exec bin/chaos -duration $(or $(DURATION),60s) -seed $(SEED) -event-store $(EVENT_STORE)

.PHONY: chaos-kafka
chaos-kafka: bin/chaos ## Take Kafka away for AWAY (2m) under load, and audit what is left
	@exec bin/chaos -duration 0 -away $(AWAY) -seed $(SEED)

# How much bench-rebuild writes before it rebuilds.
ACCOUNTS ?= 100000
EVENTS ?= 1000000

.PHONY: bench-rebuild
bench-rebuild: ## Rebuild the list of ACCOUNTS accounts from EVENTS events while it is used, and check it
	@go build -o bin/testenv ./deploy/local/cmd/testenv
	@go build -o bin/bench-rebuild ./services/account/bench
	@bin/testenv bin/bench-rebuild -accounts $(ACCOUNTS) -events $(EVENTS)

# What bench runs on: apache, embedded or both.
BROKER ?= both

.PHONY: bin/bench
bin/bench:
	@go build -o bin/bench ./test/bench

.PHONY: bench
bench: bin/bench ## Measure the whole system for DURATION (20s) a scenario on BROKER (both) and EVENT_STORE (postgres, kafka or both), or ONLY=snapshot,… of them: table, test/bench/out/bench.json, bench.png
	@exec bin/bench -duration $(or $(DURATION),20s) -broker $(BROKER) -event-store $(EVENT_STORE) $(if $(ONLY),-only $(ONLY)) $(if $(INSTANCES),-instances $(INSTANCES)) $(if $(PROFILES),-profiles)

.PHONY: bench-soak
bench-soak: bin/bench ## Offer 0.8 of the capacity for DURATION (30m) on BROKER (apache), and look at what should stay as it is
	@exec bin/bench -soak -duration $(or $(DURATION),30m) -broker $(if $(filter both,$(BROKER)),apache,$(BROKER))

# Sizes that bench-growth measures at: accounts:events.
SIZES ?= 1000:10000,100000:1000000,1000000:10000000

.PHONY: bench-growth
bench-growth: bin/bench ## Measure the system at SIZES (1,000 accounts with 10,000 events to a million with ten), each load for DURATION (20s)
	@exec bin/bench -growth $(SIZES) -duration $(or $(DURATION),20s) -broker $(if $(filter both,$(BROKER)),apache,$(BROKER))

.PHONY: bench-stores
bench-stores: ## Measure what each event store appends a second, beside the plain drivers, for DURATION (5s) a figure
	@go build -o bin/stores ./test/stores
	@exec bin/stores -duration $(or $(DURATION),5s)

.PHONY: bench-load
bench-load: ## Measure loads of one aggregate out of a Kafka log of EVENTS (1000000), and starts with such a log
	@go build -o bin/stores ./test/stores
	@exec bin/stores -load $(or $(EVENTS),1000000)

.PHONY: pgo
pgo: bin/bench ## Profile the services under load for DURATION (20s) a scenario: the default.pgo that their builds are optimised by
	@bin/bench -duration $(or $(DURATION),20s) -broker apache -only uniform1024,rest,open500 -profiles -out bin/pgo
	@go tool pprof -proto -output bin/pgo/default.pgo bin/pgo/*.pprof
	@for s in $(SERVICES); do cp bin/pgo/default.pgo services/$$s/default.pgo; done

.PHONY: verify
verify: verify-format verify-generated verify-proto verify-modules verify-lint ## Check format, generated code, contracts, modules, lint

.PHONY: verify-format
verify-format:
	@out=$$(git ls-files -co --exclude-standard '*.go' | grep -v '\.pb\.' | xargs gofmt -l); [ -z "$$out" ] || { echo "gofmt would change:"; echo "$$out"; exit 1; }
	@echo "format: ok"

.PHONY: verify-generated
verify-generated: bin/buf
	@deploy/scripts/verify-generated.sh

.PHONY: verify-proto
verify-proto: bin/buf
	@bin/buf lint
	@bin/buf breaking --against proto/baseline.binpb
	@deploy/scripts/verify-breaking.sh
	@echo "proto: ok"

.PHONY: verify-modules
verify-modules:
	@for m in $(MODULES); do (cd $$m && GOWORK=off go build ./... && GOWORK=off go vet ./... && GOWORK=off go mod tidy -diff >/dev/null) || { echo "module $$m: does not build, vet or tidy by itself"; exit 1; }; done
	@echo "modules: ok"

.PHONY: verify-lint
verify-lint: bin/golangci-lint
	@for m in $(filter-out proto/gen/go,$(MODULES)); do (cd $$m && $(CURDIR)/bin/golangci-lint run --config $(CURDIR)/.golangci.yaml ./...) || exit 1; done
	@cd pkg && $(CURDIR)/bin/golangci-lint run --config $(CURDIR)/.golangci.yaml --build-tags failpoints ./failpoint/...
	@echo "lint: ok"

##@ Change

.PHONY: generate
generate: bin/buf ## Write the generated code and the OpenAPI document from proto/
	@deploy/scripts/generate.sh .

.PHONY: baseline
baseline: bin/buf ## Make the present contracts the ones that later changes must not break (at a release)
	@bin/buf build -o proto/baseline.binpb

.PHONY: golden
golden: ## Write golden files for new events (existing ones never change)
	@cd services/account && go test . -run Golden -update
	@cd services/transaction && go test . -run Golden -update
	@cd services/saga-orchestrator && go test . -run Golden -update

.PHONY: kafka
kafka: ## Run a real Apache Kafka without Docker, in the foreground (deploy/kafka)
	@deploy/kafka/run.sh --data var/kafka --port 9092 || [ $$? = 143 ] # 143: ended by SIGTERM, as it should

.PHONY: clean
clean: ## Remove bin/ and var/ (root's data may be below /var/tmp: make up prints where)
	@rm -rf bin var

# Tools, pinned in tools/; built once.
bin/gotestsum bin/grpcurl bin/protoc-gen-go bin/protoc-gen-go-grpc bin/protoc-gen-grpc-gateway bin/protoc-gen-openapiv2: tools/go.mod
	@mkdir -p bin && cd tools && GOWORK=off go build -o ../bin/ tool
	@touch bin/gotestsum bin/grpcurl bin/protoc-gen-go bin/protoc-gen-go-grpc bin/protoc-gen-grpc-gateway bin/protoc-gen-openapiv2
bin/buf: tools/buf/go.mod bin/protoc-gen-go
	@mkdir -p bin && cd tools/buf && GOWORK=off go build -o ../../bin/ tool && touch ../../bin/buf
bin/golangci-lint: tools/lint/go.mod
	@mkdir -p bin && cd tools/lint && GOWORK=off go build -o ../../bin/ tool && touch ../../bin/golangci-lint
