# SPDX-License-Identifier: Apache-2.0
#
# What people do here. Each target sets itself up on a machine that has Swift and apt, and does
# nothing twice.

PREFIX ?= /usr/local
SWIFT ?= swift
SOURCES = Sources Tests Package.swift

.PHONY: build demo test bench fuzz docs lint format install clean

# The program, optimised: .build/release/usbvfiod. It needs nothing of the toolchain, which may lie in
# somebody's home, or go.
build:
	scripts/setup
	$(SWIFT) build -c release --static-swift-stdlib --product usbvfiod

# A virtual machine uses a USB stick made of an image file, before your eyes.
demo:
	scripts/setup
	scripts/demo

# All tests, those with virtual machines included. FILTER=XHCITests runs some of them.
test:
	scripts/setup
	scripts/bed/prepare
	$(SWIFT) test $(if $(FILTER),--filter $(FILTER))

# How fast it is, as a table, JSON and plots in .build/bench. FILTER=native measures a part,
# RECORD=1 puts the table into docs/benchmarks.md.
bench:
	scripts/setup
	scripts/bed/prepare || true
	scripts/bench

# Hostile bytes for everything that reads what others write: TIME seconds for each target (60), or
# TARGET=storage for one. TIME=0 runs the corpora once.
fuzz:
	scripts/setup
	TIME=$(or $(TIME),60) scripts/fuzz $(TARGET)

# The reference of the modules that a backend is written against, in .build/docs.
docs:
	scripts/setup
	scripts/docs

# What CI refuses: wrong formatting, imports that the manifest does not declare.
lint:
	scripts/setup
	$(SWIFT) format lint --strict --recursive $(SOURCES)
	$(SWIFT) build --explicit-target-dependency-import-check error

format:
	$(SWIFT) format --in-place --recursive $(SOURCES)

# root mostly has no Swift, and takes what was built before.
install:
	[ "$$(id -u)" = 0 ] && [ -x .build/release/usbvfiod ] || $(MAKE) build
	install -D -m 755 .build/release/usbvfiod $(DESTDIR)$(PREFIX)/bin/usbvfiod

clean:
	rm -rf .build .build-*
