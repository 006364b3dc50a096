# Without a target, make builds flanneld. "make help" lists the targets.

GO = go

# What flanneld --version says; set it where there is no git history to ask.
VERSION = $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)

# Further arguments of go test, such as TESTFLAGS='-run TestBackends -v'.
TESTFLAGS =

# How long each fuzz target is fuzzed.
FUZZTIME = 1m

# Arguments of the benchmark, such as BENCHFLAGS='-only vxlan,start'.
BENCHFLAGS =

# -buildvcs=false: the version is given above, and asking git a second time
# fails the build where the tree belongs to another user.
BUILD = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false

.PHONY: build test e2e fuzz demo bench lint fmt-check tools clean help

build: ## build bin/flanneld (the default)
	$(BUILD) -ldflags "-s -w -X main.version=$(VERSION)" -o bin/flanneld ./cmd/flanneld

# The race detector wants cgo, and so a C compiler; whether that works, building
# the detector itself tells.
test: tools build ## run all tests, with the race detector where a C compiler is there
	@race=; \
	if $(GO) build -race -o /dev/null runtime/race 2>/dev/null; then race=-race; \
	else echo 'No race detector: it needs a C compiler and cgo.'; export CGO_ENABLED=0; fi; \
	set -x; $(GO) test $$race -timeout 20m $(TESTFLAGS) ./...

# -count=1: what the tests try is not all Go, so no result is one to keep.
e2e: ## test with real systemd, dockerd, supervisord and TLS (root; ten minutes)
	@sh dist/tools.sh e2e
	$(GO) test -tags e2e -count=1 -timeout 30m $(TESTFLAGS) ./dist/e2e/...

# go test fuzzes one target at a time, and names a package after its targets. An
# input that fails is kept below the package's testdata/fuzz, and the next target
# follows.
fuzz: ## fuzz every fuzz target there is (FUZZTIME, a minute each)
	@list=$$($(GO) test -list '^Fuzz' ./...) || { echo "$$list"; exit 1; }; \
	echo "$$list" | awk '/^Fuzz/ { names[n++] = $$1 } $$1 == "ok" { for (i = 0; i < n; i++) print $$2, names[i]; n = 0 }' | { \
	failed=0; \
	while read -r package name; do \
		echo "--- $$name in $$package"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$package" </dev/null || failed=1; \
	done; \
	exit $$failed; }

demo: tools ## show each backend at work on three hosts, and measure it (half a minute)
	@$(BUILD) -o bin/demo ./cmd/demo
	@exec bin/demo

bench: tools ## measure the control plane with thousands of leases (six minutes)
	@$(BUILD) -o bin/bench ./cmd/bench
	@exec bin/bench $(BENCHFLAGS)

lint: fmt-check ## gofmt, go vet and staticcheck, all silent
	$(GO) vet -tags e2e ./...
	$(GO) tool -modfile=dist/lint/go.mod staticcheck -tags e2e ./...

fmt-check: ## name the Go files that gofmt would change
	@files=$$(gofmt -l .) || exit 1; \
	if [ -n "$$files" ]; then echo "gofmt -w would change:"; echo "$$files"; exit 1; fi

tools: ## install ip, bridge and iptables, which tests and demo call, where they are missing
	@sh dist/tools.sh

clean: ## remove what was built
	rm -rf bin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
