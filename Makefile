# SPDX-License-Identifier: Apache-2.0
#
# The tasks of a developer. Each target installs what it needs on a machine that has Swift and apt, and
# does nothing twice.

PREFIX ?= /usr/local
SWIFT ?= swift
SOURCES = Sources Tests Package.swift

.PHONY: build demo test soak bench fuzz docs lint format install clean

# The optimised program, .build/release/usbvfiod. It is linked without libraries of the toolchain, which
# may be in a user's home folder or be removed.
build:
	scripts/setup
	$(SWIFT) build -c release --static-swift-stdlib --product usbvfiod

# A virtual machine that uses a USB stick made of an image file.
demo:
	scripts/setup
	scripts/demo

# All tests, with virtual machines. FILTER=XHCITests selects some.
test:
	scripts/setup
	scripts/bed/prepare
	ulimit -S -n $$(ulimit -H -n); $(SWIFT) test $(if $(FILTER),--filter $(FILTER))

# Tests that take longer: all tests without virtual machines RUNS times (30) on a busy machine,
# simulations with SEEDS random seeds of each kind (20000), and every failing system call.
# RUNS=0, SEEDS=0 and SWEEP= leave a part out. Logs are in .build/soak.
RUNS ?= 30
SEEDS ?= 20000
SWEEP ?= all
soak:
	scripts/setup
	RUNS=$(RUNS) SEEDS=$(SEEDS) SWEEP=$(SWEEP) scripts/soak

# Benchmarks, as a table, JSON and plots in .build/bench. FILTER=native selects a part, RECORD=1 writes
# the table into docs/benchmarks.md.
bench:
	scripts/setup
	scripts/bed/prepare || true
	scripts/bench

# Fuzzing of everything that parses input of others: TIME seconds for each target (60), or
# TARGET=storage for one. TIME=0 runs the corpora once.
fuzz:
	scripts/setup
	TIME=$(or $(TIME),60) scripts/fuzz $(TARGET)

# The reference of the modules that a backend is written against, in .build/docs.
docs:
	scripts/setup
	scripts/docs

# Formatting, and imports that the manifest does not declare.
lint:
	scripts/setup
	$(SWIFT) format lint --strict --recursive $(SOURCES)
	$(SWIFT) build --explicit-target-dependency-import-check error

format:
	$(SWIFT) format --in-place --recursive $(SOURCES)

# root seldom has Swift, so it installs the program that a user has built before.
install:
	[ "$$(id -u)" = 0 ] && [ -x .build/release/usbvfiod ] || $(MAKE) build
	install -D -m 755 .build/release/usbvfiod $(DESTDIR)$(PREFIX)/bin/usbvfiod

clean:
	rm -rf .build .build-*
