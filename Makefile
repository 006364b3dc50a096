# Without a target, make builds flanneld. "make help" lists the targets.

GO = go

# git, which takes no history of a directory further up for that of this one,
# and abbreviates names of commits alike in each clone.
GIT = GIT_CEILING_DIRECTORIES="$${PWD%/*}" git -c core.abbrev=12

# What flanneld --version says; set it where there is no git history to ask.
VERSION = $(shell $(GIT) describe --tags --always --dirty 2>/dev/null || echo unknown)

# Where "make install" puts things. Packagers set DESTDIR, which goes in front of
# each of these and into no file; as a variable of the environment it counts too.
PREFIX = /usr/local
bindir = $(PREFIX:%/=%)/bin
docdir = $(PREFIX:%/=%)/share/doc/flannel
# systemd looks for units below these two prefixes, and in /etc.
unitdir = $(if $(filter /usr /usr/local,$(PREFIX:%/=%)),$(PREFIX:%/=%)/lib,/etc)/systemd/system

# The architectures of a release, and the oldest machines of each that it is to
# run on, whatever the environment says. 6 is the arm of the first Raspberry Pi.
ARCHES = amd64 arm64 arm ppc64le s390x riscv64
OLDEST = GOAMD64=v1 GOARM64=v8.0 GOARM=6 GOPPC64=power8 GORISCV64=rva20u64 GOEXPERIMENT= GOFLAGS=-trimpath

# Further arguments of go test, such as TESTFLAGS='-run TestBackends -v'.
TESTFLAGS =

# How long each fuzz target is fuzzed.
FUZZTIME = 1m

# Arguments of the benchmark, such as BENCHFLAGS='-only vxlan,start' or '-only udp'.
BENCHFLAGS =

# -buildvcs=false: the version is given above, and asking git a second time
# fails the build where the tree belongs to another user.
BUILD = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false
BUILD_FLANNELD = $(BUILD) -ldflags "-s -w -X main.version=$(VERSION)"

# A program that runs here, whatever architecture GOARCH says flanneld is for.
RUN_HERE = GOOS="$$($(GO) env GOHOSTOS)" GOARCH="$$($(GO) env GOHOSTARCH)" $(GO) run -buildvcs=false

# A value as one word of a shell command.
quote = '$(subst ','\'',$(1))'

.PHONY: build test e2e fuzz demo bench lint fmt-check tools install uninstall dist clean help

build: ## build bin/flanneld (the default)
	$(BUILD_FLANNELD) -o bin/flanneld ./cmd/flanneld

# The race detector wants cgo, and so a C compiler; whether that works, building
# the detector itself tells.
test: build ## run all tests, with the race detector where a C compiler is there
	@sh dist/tools.sh test
	@race=; \
	if $(GO) build -race -o /dev/null runtime/race 2>/dev/null; then race=-race; \
	else echo 'No race detector: it needs a C compiler and cgo.'; export CGO_ENABLED=0; fi; \
	set -x; $(GO) test $$race -timeout 20m $(TESTFLAGS) ./...

# -count=1: what the tests try is not all Go, so no result is one to keep.
e2e: ## test with real systemd, dockerd, supervisord and TLS (root; five minutes)
	@sh dist/tools.sh e2e
	$(GO) test -tags e2e -count=1 -timeout 30m $(TESTFLAGS) ./dist/e2e/...

# go test fuzzes one target at a time, and names a package after its targets. An
# input that fails is kept below the package's testdata/fuzz, and the next target
# follows. Without a limit, making inputs smaller takes most of the time.
fuzz: ## fuzz every fuzz target there is (FUZZTIME, a minute each)
	@list=$$($(GO) test -list '^Fuzz' ./...) || { echo "$$list"; exit 1; }; \
	echo "$$list" | awk '/^Fuzz/ { names[n++] = $$1 } $$1 == "ok" { for (i = 0; i < n; i++) print $$2, names[i]; n = 0 }' | { \
	failed=0; \
	while read -r package name; do \
		echo "--- $$name in $$package"; \
		$(GO) test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 20x "$$package" </dev/null || failed=1; \
	done; \
	exit $$failed; }

demo: tools ## show each backend at work on three hosts, and measure it (half a minute)
	@$(BUILD) -o bin/demo ./cmd/demo
	@exec bin/demo

bench: ## measure the control plane with thousands of leases, and traffic (ten minutes)
	@sh dist/tools.sh bench
	@$(BUILD) -o bin/bench ./cmd/bench
	@exec bin/bench $(BENCHFLAGS)

lint: fmt-check ## gofmt, go vet and staticcheck, all silent
	$(GO) vet -tags e2e ./...
	$(GO) tool -modfile=dist/lint/go.mod staticcheck -tags e2e ./...

fmt-check: ## name the Go files that gofmt would change
	@files=$$(gofmt -l .) || exit 1; \
	if [ -n "$$files" ]; then echo "gofmt -w would change:"; echo "$$files"; exit 1; fi

tools: ## install ip, bridge and iptables, which the demo calls, where they are missing
	@sh dist/tools.sh

# Built before if it is older than the sources only: root, who installs, may have
# no Go, and should not have to build.
install: bin/flanneld ## install below PREFIX, /usr/local (DESTDIR for packagers; see README)
	@$(INSTALL)

uninstall: ## remove what "make install" with the same PREFIX installed
	@$(INSTALL) uninstall

INSTALL = DESTDIR=$(call quote,$(DESTDIR)) bindir=$(call quote,$(bindir)) \
	docdir=$(call quote,$(docdir)) unitdir=$(call quote,$(unitdir)) sh dist/install.sh

bin/flanneld: go.mod go.sum $(shell find backend cmd/flanneld network pkg subnet -name '*.go' ! -name '*_test.go')
	@$(MAKE) --no-print-directory build

# The version is checked alone at first: building takes minutes.
dist: ## pack archives of a release for ARCHES into bin/dist (minutes)
	@$(RUN_HERE) ./dist/pack -version $(call quote,$(VERSION))
	@rm -rf bin/dist
	@for arch in $(ARCHES); do \
		echo "Building flanneld for linux/$$arch"; \
		$(OLDEST) GOOS=linux GOARCH=$$arch $(BUILD_FLANNELD) -o bin/linux-$$arch/flanneld ./cmd/flanneld || exit; \
	done
	@$(RUN_HERE) ./dist/pack -version $(call quote,$(VERSION)) \
		-time "$${SOURCE_DATE_EPOCH:-$$($(GIT) log -1 --format=%ct 2>/dev/null)}" \
		bin/dist $(foreach arch,$(ARCHES),$(arch)=bin/linux-$(arch)/flanneld) -- dist/mk-docker-opts.sh README.md

clean: ## remove what was built
	rm -rf bin

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile
