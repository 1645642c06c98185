# Everything a developer or a newcomer runs, each as one word. `make run` is the quickest way to a serving server.
#
# The server loads ONNX Runtime at run time from ORT_DYLIB_PATH. Where that is not set, the pinned
# library is installed into lib/ first (tools/install_onnxruntime.py); where it is set, nothing is downloaded.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help

PYTHON ?= python3
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
VENV := .venv
# Options for `ortus serve`, as in: make run ARGS="--listen 127.0.0.1:9000"
ARGS ?=

# The loader looks for a relative path beside the executable first, so ours is absolute.
ifdef ORT_DYLIB_PATH
LIBRARY :=
GPU_ENV := :
else
export ORT_DYLIB_PATH := $(CURDIR)/lib/libonnxruntime.so.1
LIBRARY := library
GPU_ENV := source lib-cuda/env.sh
endif

.PHONY: reliability image-check browser screenshots deploy-check rolling crash overload schema-check sbom exporter exporter-test fuzz help run test check gpu-run gpu-check gpu-models clients models fixtures zero-shot-fixtures bench bench-models optimize-table soak clean library gpu-library fmt-check lint docs openapi-check deny

help:  ## List these commands
	@grep -hE '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z-]+):.*## */\1\t/' | column -t -s $$'\t'

library:
	@$(PYTHON) tools/install_onnxruntime.py

# Nothing to install where the user brought a library.
gpu-library:
ifeq ($(LIBRARY),library)
	@$(PYTHON) tools/install_onnxruntime.py --cuda
endif

run: $(LIBRARY)  ## Build the server and serve models/ on 127.0.0.1:8080 (options in ARGS)
	$(CARGO) build --release --locked
	exec $(TARGET)/release/ortus serve $(ARGS)

test: $(LIBRARY)  ## Run all tests
	$(CARGO) test --locked

check: fmt-check lint test docs openapi-check deny  ## What has to pass before a change is handed in

fmt-check:
	$(CARGO) fmt --check

lint:
	$(CARGO) clippy --locked --all-targets -- -D warnings

docs:
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --locked --no-deps --document-private-items

# openapi.yaml is a golden file; after a wanted change: ortus openapi > openapi.yaml
openapi-check: $(LIBRARY)
	$(CARGO) build --locked
	$(TARGET)/debug/ortus openapi | diff openapi.yaml -

deny:
	@$(CARGO) deny --version >/dev/null 2>&1 || { echo "cargo-deny is not installed: cargo install --locked cargo-deny"; exit 1; }
	$(CARGO) deny --all-features check bans licenses sources

CYCLONEDX_VERSION := 0.5.9
CYCLONEDX := $(TARGET)/tools/bin/cargo-cyclonedx

$(CYCLONEDX):
	$(CARGO) install --quiet --locked --root $(TARGET)/tools cargo-cyclonedx@$(CYCLONEDX_VERSION)

sbom: $(CYCLONEDX)  ## List all that the program is made of, in target/ortus.cdx.json
	$(PYTHON) tools/sbom.py $(CYCLONEDX) $(TARGET)/ortus.cdx.json

gpu-run: gpu-library  ## Like run, on an NVIDIA GPU (driver for CUDA 13 needed)
	$(CARGO) build --release --locked
	$(GPU_ENV); ORTUS_DEVICE__DEVICE_TYPE=cuda exec $(TARGET)/release/ortus serve $(ARGS)

# ORTUS names a binary built elsewhere, for a GPU machine without a Rust toolchain. GPU_CHECK chooses parts, as in:
# make gpu-check GPU_CHECK="--part answers --part unload"
gpu-check: gpu-library gpu-models  ## Check on a GPU machine that the models run on the GPU, right, fast and within its memory
ifndef ORTUS
	$(CARGO) build --release --locked
endif
	$(GPU_ENV); $(PYTHON) tools/gpu_check.py $(or $(ORTUS),$(TARGET)/release/ortus) $(GPU_CHECK)

gpu-models: $(VENV)/.installed
	$(VENV)/bin/python tools/make_bench_models.py --gpu $(TARGET)/gpu-models

$(VENV)/.installed: tests/clients/requirements.txt tests/clients/requirements-alone.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement tests/clients/requirements-alone.txt
	@touch $@

clients: $(LIBRARY) $(VENV)/.installed  ## Run unmodified Python clients against the server
	$(CARGO) build --locked
	@for script in tests/clients/[!_]*.py; do \
	    [ -e "$$script" ] || { echo "no client tests in tests/clients"; exit 1; }; \
	    echo "== $$script"; ORTUS=$(abspath $(TARGET))/debug/ortus $(VENV)/bin/python "$$script"; \
	done

BROWSER := tests/browser/.venv

$(BROWSER)/.installed: tests/browser/requirements.txt
	$(PYTHON) -m venv $(BROWSER)
	$(BROWSER)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

browser: $(LIBRARY) $(BROWSER)/.installed  ## Drive the dashboard in the system's Chromium
	$(CARGO) build --locked
	ORTUS=$(abspath $(TARGET))/debug/ortus $(BROWSER)/bin/python tests/browser/dashboard.py

DEPLOY := deploy/.venv

$(DEPLOY)/.installed: deploy/requirements.txt deploy/requirements-alone.txt
	$(PYTHON) -m venv $(DEPLOY)
	$(DEPLOY)/bin/python -m pip install --quiet --disable-pip-version-check --requirement deploy/requirements.txt
	$(DEPLOY)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement deploy/requirements-alone.txt
	@touch $@

deploy-check: $(LIBRARY) $(DEPLOY)/.installed  ## Hold manifests, chart and Dockerfile to the published schemas and a real server
	$(CARGO) build --locked
	$(DEPLOY)/bin/python deploy/check.py $(abspath $(TARGET))/debug/ortus

rolling: $(LIBRARY)  ## Restart two servers behind nginx in turn, under load (needs nginx)
	$(CARGO) build --locked
	$(PYTHON) tests/rolling/rolling.py $(abspath $(TARGET))/debug/ortus

# CRASH holds options of tests/crash/crash.py, as in: make crash CRASH="--rounds 50 --seed 7"
crash: $(LIBRARY)  ## Kill a server again and again while it works; nothing that it promised may be lost
	$(CARGO) build --locked
	$(PYTHON) tests/crash/crash.py $(abspath $(TARGET))/debug/ortus $(CRASH)

# IMAGE holds options of tests/image/image.py, as in: make image-check IMAGE=--whole
image-check: $(LIBRARY)  ## Build the image and hold a container of it to few rights and to serving (needs podman or docker)
	$(CARGO) build --locked
	$(PYTHON) tests/image/image.py $(abspath $(TARGET))/debug/ortus lib $(IMAGE)

SCHEMA := tests/schema/.venv

$(SCHEMA)/.installed: tests/schema/requirements.txt
	$(PYTHON) -m venv $(SCHEMA)
	$(SCHEMA)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# SCHEMA_CHECK holds options of tests/schema/check.py, as in: make schema-check SCHEMA_CHECK="--seconds 600 --seed 7"
schema-check: $(LIBRARY) $(SCHEMA)/.installed  ## Hold every answer of a server to its own /openapi.json, with made-up requests
	$(CARGO) build --locked
	$(SCHEMA)/bin/python tests/schema/check.py $(abspath $(TARGET))/debug/ortus $(SCHEMA_CHECK)

# Elsewhere as in: make screenshots SCREENSHOTS=/tmp/pictures
screenshots: $(LIBRARY) $(BROWSER)/.installed  ## Take the pictures of docs/screenshots again
	$(CARGO) build --locked
	ORTUS=$(abspath $(TARGET))/debug/ortus $(BROWSER)/bin/python tests/browser/screenshots.py $(SCREENSHOTS)

EXPORTER := tools/exporter/.venv

$(EXPORTER)/.installed: tools/exporter/requirements.txt
	$(PYTHON) -m venv $(EXPORTER)
	$(EXPORTER)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

exporter: $(EXPORTER)/.installed  ## Set up what turns PyTorch models into ONNX (PyTorch: about 3 GB)

exporter-test: exporter  ## Test it, alone and as the server runs it
	cd tools/exporter && .venv/bin/python -m unittest discover tests
	ORTUS_EXPORTER_PYTHON=$(CURDIR)/$(EXPORTER)/bin/python $(CARGO) test --locked --lib hub::exporter

models: $(VENV)/.installed  ## Train models/digits again and write its golden answers (needs PyTorch, scikit-learn)
	$(PYTHON) tools/make_models.py
	$(VENV)/bin/python tools/make_models.py --golden

fixtures: $(VENV)/.installed  ## Write the test models and their golden answers again
	$(VENV)/bin/python tools/make_fixtures.py
	$(VENV)/bin/python tools/make_image_tasks.py

zero-shot-fixtures:  ## Write the test models that compare pictures with texts again (needs PyTorch, transformers)
	$(PYTHON) tools/make_zero_shot_image.py

# ORTUS_BENCH chooses, as in: ORTUS_BENCH="mlp echo --rounds 3" make bench
bench: $(LIBRARY) bench-models  ## Run the benchmarks
	$(CARGO) bench --locked

# SOAK holds options of tools/soak.py, as in: make soak SOAK="--minutes 1 --cycles 5"
soak: $(LIBRARY) bench-models  ## Load a release build for twenty minutes, rightly and wrongly; nothing may be lost or kept
	$(CARGO) build --release --locked
	$(PYTHON) tools/soak.py $(TARGET)/release/ortus $(TARGET)/bench-models $(SOAK)

# On an idle machine. OVERLOAD holds options of benches/overload.py, as in: make overload OVERLOAD="--run-ms 10"
overload: $(LIBRARY)  ## Offer a release build up to ten times what it can do; it must go on doing what it can
	$(CARGO) build --release --locked
	$(PYTHON) benches/overload.py $(abspath $(TARGET))/release/ortus $(OVERLOAD)

# Each target for so many seconds, as in: make fuzz FUZZ="600 image"
fuzz:  ## Give everything that reads foreign bytes made-up ones
	tools/fuzz.sh $(FUZZ)

# Original, variants and tuned settings of three models, then cold beside warm loads; on an idle machine, under 8 minutes.
optimize-table: $(LIBRARY) bench-models  ## Measure what optimising brings, as a table
	$(CARGO) build --release --locked
	$(PYTHON) tools/optimize_table.py $(TARGET)/release/ortus $(TARGET)/bench-models $(OPTIMIZE_TABLE)

CONTAINERS := $(shell command -v podman || command -v docker)

# The container's part needs podman or docker; without them the table says so. The dashboard's part needs Chromium: RELIABILITY="--without tests/browser/dashboard.py" leaves it out, and says so in the table.
reliability: $(LIBRARY) $(if $(RELIABILITY),,$(BROWSER)/.installed)  ## Run the tests and write docs/RELIABILITY.md, what they show
	cd tools && $(PYTHON) test_reliability.py
	@mkdir -p $(TARGET)/reliability
	$(CARGO) build --locked
	$(CARGO) test --locked -- --show-output > $(TARGET)/reliability/tests.log || true
ifeq ($(RELIABILITY),)
	ORTUS=$(abspath $(TARGET))/debug/ortus $(BROWSER)/bin/python tests/browser/dashboard.py > $(TARGET)/reliability/browser.log || true
endif
ifneq ($(CONTAINERS),)
	$(PYTHON) tests/image/image.py $(abspath $(TARGET))/debug/ortus lib > $(TARGET)/reliability/image.log || true
endif
	$(PYTHON) tools/reliability.py $(if $(RELIABILITY),$(RELIABILITY),$(TARGET)/reliability/browser.log) \
		$(if $(CONTAINERS),$(TARGET)/reliability/image.log,--without tests/image/image.py) $(TARGET)/reliability/tests.log

bench-models: $(VENV)/.installed
	$(VENV)/bin/python tools/make_bench_models.py $(TARGET)/bench-models

clean:  ## Remove what was built and installed here
	$(CARGO) clean
	rm -rf lib lib-cuda $(VENV) $(EXPORTER) $(BROWSER) $(DEPLOY) $(SCHEMA)
