# Everything that is done with this repository. `make` alone lists it.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:

# The Python that .venv is made from.
PYTHON ?= python3

VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# Directories too: they change when a file goes.
SOURCES := setup.py pyproject.toml Cargo.toml Cargo.lock build.rs $(wildcard README.md LICENSE) \
	$(shell find src csrc include cmake) $(shell find python -name '*.py' -o -name py.typed)
CPP_FILES = $(wildcard csrc/*.h csrc/*.cpp include/veturboio/*.h tests/cpp/*.h tests/cpp/*.cpp \
	tests/accelerator/*.h tests/accelerator/*.cpp \
	examples/cpp/*.cpp)
PYTHON_FILES = setup.py python tests bench examples fuzz

# Stamps stand in .venv, so they go when it goes.
MADE := $(VENV)/made.stamp
TORCH := $(VENV)/requirements.stamp
TOOLS := $(VENV)/requirements-dev.stamp
INSTALLED := $(VENV)/veturboio.stamp

# The libraries that veturboio is measured beside, in an environment of their own.
RIVALS := build/bench/venv-rivals
RIVALS_INSTALLED := $(RIVALS)/requirements.stamp

# setup.py names torch's directory to torch-sys in the same words: cargo would compile torch-sys
# anew for others. Programs of cargo, unlike the installed library, find libtorch by LD_LIBRARY_PATH.
TORCH_DIR = $$($(BIN)/python -c 'import importlib.util as u, os; \
	print(os.path.realpath(u.find_spec("torch").submodule_search_locations[0]))')
CARGO_ENV = unset LIBTORCH_USE_PYTORCH LIBTORCH_INCLUDE LIBTORCH_LIB; \
	export LIBTORCH="$(TORCH_DIR)"; export LD_LIBRARY_PATH="$$LIBTORCH/lib$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH}";
PIP = $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: $(INSTALLED) $(TOOLS) ## install, then load and save a real checkpoint from Python, TorchScript, C++ and Rust
	@PATH="$(BIN):$$PATH" $(BIN)/python examples/demo.py

.PHONY: test
test: test-rust test-python test-cpp ## run every test: cargo test, a minute of fuzzing, pytest and the C++ consumer
	@$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=60

.PHONY: test-rust
test-rust: $(TORCH) ## run the tests of the Rust core
	@$(CARGO_ENV) set -x; cargo test --locked

.PHONY: test-python
test-python: $(INSTALLED) $(TOOLS) ## run the tests of the Python package
	$(BIN)/python -m pytest

.PHONY: test-cpp
test-cpp: $(INSTALLED) $(TOOLS) ## build a C++ program against the installed package, and run it
	prefix=$$($(BIN)/python -c 'import veturboio; print(veturboio.cmake_prefix_path)') && \
	PATH="$(BIN):$$PATH" cmake -S tests/cpp -B build/tests-cpp -G Ninja -DCMAKE_PREFIX_PATH="$$prefix"
	PATH="$(BIN):$$PATH" cmake --build build/tests-cpp
	$(BIN)/ctest --test-dir build/tests-cpp --output-on-failure

# libFuzzer's instrumentation, which cargo-fuzz would add, in options that stable Rust takes.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Clink-dead-code \
	$(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table trace-compares)
FUZZ_TARGET := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
FUZZ_SECONDS ?= 600

.PHONY: fuzz
fuzz: $(TOOLS) ## fuzz what reads hostile bytes for FUZZ_SECONDS, ten minutes by default
	$(BIN)/python fuzz/corpus.py build/fuzz/corpus
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --locked --release --manifest-path fuzz/Cargo.toml \
		--target $(FUZZ_TARGET) --target-dir target/fuzz
	@mkdir -p build/fuzz/found
	target/fuzz/$(FUZZ_TARGET)/release/formats build/fuzz/found build/fuzz/corpus \
		-artifact_prefix=build/fuzz/ -max_total_time=$(FUZZ_SECONDS) -max_len=65536 \
		-rss_limit_mb=2048 -timeout=10 -verbosity=0 -print_final_stats=1

.PHONY: lint
lint: $(TOOLS) $(TORCH) ## check formatting, and run clippy, ruff and mypy
	@cargo fmt --version >/dev/null 2>&1 || { echo 'lint veturboio: rustfmt is missing, run `rustup component add rustfmt`' >&2; exit 1; }
	@cargo clippy --version >/dev/null 2>&1 || { echo 'lint veturboio: clippy is missing, run `rustup component add clippy`' >&2; exit 1; }
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo fmt --check --manifest-path tests/slowfs/Cargo.toml
	cargo fmt --check --manifest-path tests/cloudserver/Cargo.toml
	@$(CARGO_ENV) set -x; cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --manifest-path tests/slowfs/Cargo.toml --target-dir target/slowfs -- -D warnings
	cargo clippy --locked --manifest-path tests/cloudserver/Cargo.toml --target-dir target/cloudserver -- -D warnings
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/mypy

.PHONY: fmt
fmt: $(TOOLS) ## format all sources
	cargo fmt
	cargo fmt --manifest-path fuzz/Cargo.toml
	cargo fmt --manifest-path tests/slowfs/Cargo.toml
	cargo fmt --manifest-path tests/cloudserver/Cargo.toml
	$(BIN)/clang-format -i $(CPP_FILES)
	$(BIN)/ruff check --fix-only $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)

.PHONY: bench
bench: $(INSTALLED) $(TOOLS) $(RIVALS_INSTALLED) ## measure load and save beside other libraries and bare system calls
	$(BIN)/python -m bench
	$(BIN)/python -m bench.cloud --keep

.PHONY: install
install: $(INSTALLED) ## build the extension and install it into .venv

.PHONY: clean
clean: ## remove what was built; .venv stays
	rm -rf build dist python/*.egg-info
	rm -f $(INSTALLED)
	cargo clean

# One sentence for each missing tool, before anything starts.
.PHONY: check-tools
check-tools:
	@missing=0; say() { echo "build veturboio: $$1" >&2; missing=1; }; \
	if ! command -v $(PYTHON) >/dev/null; then \
		say '$(PYTHON) is not on PATH, install Python 3.10 or newer'; \
	elif ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then \
		say "$$($(PYTHON) --version 2>&1) is too old, 3.10 or newer is needed"; \
	elif ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		say '$(PYTHON) cannot make virtual environments, install its venv module (on Debian: apt install python3-venv)'; \
	fi; \
	command -v cargo >/dev/null || say 'cargo is not on PATH, install Rust from https://rustup.rs'; \
	set -- $${CXX:-c++}; command -v "$$1" >/dev/null || \
		say "$$1 is not on PATH, install a C++20 compiler (on Debian: apt install g++)"; \
	exit $$missing

$(MADE): | check-tools
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(TORCH): requirements.txt $(MADE) | check-tools
	$(PIP) install -r requirements.txt
	@touch $@

$(TOOLS): requirements-dev.txt $(TORCH)
	$(PIP) install -r requirements-dev.txt
	@touch $@

# torch is not installed again: what is not here is looked for where the project's tools are.
SITE_PACKAGES = import sysconfig; print(sysconfig.get_path("purelib"))
$(RIVALS_INSTALLED): bench/requirements.txt $(TORCH)
	$(BIN)/python -m venv --clear $(RIVALS)
	$(RIVALS)/bin/python -m pip --disable-pip-version-check install --no-deps -r bench/requirements.txt
	$(BIN)/python -c '$(SITE_PACKAGES)' >"$$($(RIVALS)/bin/python -c '$(SITE_PACKAGES)')/project.pth"
	@touch $@

$(INSTALLED): $(SOURCES) $(TORCH) | check-tools
	$(BIN)/python setup.py --quiet install
	@touch $@
