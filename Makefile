# Every habit is one command: `make help` lists them.
#
# PYTHON   the interpreter that the virtual environments are made from
# TORCH    what pip installs as torch; the default is small on a machine without a GPU
MAKEFLAGS += --no-print-directory
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
PEERS := .venv-peers
DEBUG := .venv-debug
BENCH := .venv-bench
BIN := $(VENV)/bin
CXX_FILES = $(shell git ls-files 'csrc/*.h' 'csrc/*.cc' 'tests/*.h' 'tests/*.cc' 'benchmarks/*.cc')
JOBS := $(shell nproc)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

# $(call need,PACKAGE,TEST): installs a Debian package, saying so, where TEST fails.
need = @$(2) > /dev/null 2>&1 || { echo "$(1) is missing: installing it with apt-get"; \
       $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq $(1) > /dev/null; }

.PHONY: help demo test test-all build cpp-packages cpp-test asan tsan fuzz py-test debug torchrun servers peers bench micro lint format types clean

help:
	@echo "make demo      mix the Python library's source and documentation into batches"
	@echo "make test      build with warnings as errors, C++ tests, pytest, lint, types"
	@echo "make test-all  the same, then sanitizers, the package with assertions, torchrun, an S3 server, and peers"
	@echo "make build     install into $(VENV); Python files are used in place"
	@echo "make bench     measure beside the peers, and write docs/benchmarks.md and docs/scale.md; an hour and a half"
	@echo "make micro     micro-benchmarks, by pytest-benchmark"
	@echo "make fuzz      search for shards that break the reader, for FUZZ_SECONDS"
	@echo "make format    format C++ and Python"
	@echo "make clean     remove what all of these have made"

demo: build
	$(BIN)/python examples/demo.py

test: cpp-test py-test lint types

test-all: test asan tsan debug torchrun servers peers

# ---------------------------------------------------------------- build
$(VENV)/.tools: pyproject.toml Makefile
	$(call need,python3-venv,$(PYTHON) -m ensurepip --version)
	$(call need,python3-dev,test -e "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h")
	$(call need,libzstd-dev,ls /usr/lib/*/libzstd.a)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade "pip>=25.1"
	$(BIN)/python -m pip install -q "$(TORCH)" --group dev
	@touch $@

$(VENV)/.build: $(VENV)/.tools CMakeLists.txt $(wildcard csrc/*/*)
	$(BIN)/python -m pip install -q --no-build-isolation --editable . -C cmake.define.STOKER_WERROR=ON
	@touch $@

build: $(VENV)/.build

# ---------------------------------------------------------------- tests
cpp-packages:
	$(call need,libzstd-dev,ls /usr/lib/*/libzstd.a)
	$(call need,libgtest-dev,ls /usr/lib/*/libgtest.a)
	$(call need,nlohmann-json3-dev,test -e /usr/include/nlohmann/json.hpp)

cpp-test: PRESET := dev
asan: PRESET := asan
tsan: PRESET := tsan
cpp-test asan tsan: cpp-packages
	cmake --preset $(PRESET) > /dev/null
	cmake --build --preset $(PRESET) --parallel $(JOBS)
	ctest --preset $(PRESET) --progress

# Searches for shards that the reader does not stand, for as long as it is told; what it finds belongs into the corpus.
FUZZ_SECONDS ?= 60
fuzz:
	$(call need,clang,clang++ --version)
	cmake --preset fuzz > /dev/null
	cmake --build --preset fuzz --parallel $(JOBS)
	mkdir -p build/fuzz/corpus
	cd build/fuzz && ./shard_fuzzer -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -print_final_stats=1 \
	    corpus ../../tests/fuzz/corpus ../../tests/fuzz/seeds

py-test: build
	$(BIN)/python -m pytest -q
	$(BIN)/python -m pytest -q --benchmark-disable benchmarks

# The package with assertions (no work of the core is done while the GIL is held, among others), under ASan and UBSan.
RUNTIMES = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libstdc++.so)
# Tests in which the core has no part, or the same as in others, are left out.
NO_CORE = encodings% foundry_co% foundry_d% foundry_h% foundry_p% inspection% migrate% package% prepare% presets% \
          streaming% tokenizers% writer%
CORE_TESTS = $(filter-out $(NO_CORE:%=tests/python/test_%),$(wildcard tests/python/test_*.py))
debug: $(VENV)/.tools
	$(PYTHON) -m venv $(DEBUG)
	cd $(DEBUG)/lib/*/site-packages && ls -d $(CURDIR)/$(VENV)/lib/*/site-packages > tools.pth
	$(DEBUG)/bin/python -m pip install -q --no-build-isolation --no-deps . -C cmake.build-type=Debug \
	  -C cmake.define.STOKER_SANITIZE=address,undefined
	LD_PRELOAD="$(RUNTIMES)" ASAN_OPTIONS=detect_leaks=0 $(DEBUG)/bin/python -m pytest -q $(CORE_TESTS)

torchrun: build
	$(BIN)/python -m pytest -q tests/torchrun

# Remote streams of a real S3 server (SeaweedFS, which pip installs), through a network that fails.
servers: build
	$(BIN)/python -m pytest -q tests/servers

$(PEERS)/.tools: tests/peers/requirements.txt Makefile
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install -q torch==2.13.0
	$(PEERS)/bin/python -m pip install -q -r tests/peers/requirements.txt
	$(PEERS)/bin/python -m pip install -q --no-deps mosaicml-streaming==0.13.0 llm-foundry==0.22.0
	$(PEERS)/bin/python -m pip install -q "pyspark[sql]>=4,<5"
	@touch $@

peers: $(PEERS)/.tools
	$(PEERS)/bin/python -m pip install -q .
	$(PEERS)/bin/python -m pytest -q -W ignore tests/peers

# ---------------------------------------------------------------- benchmarks
$(BENCH)/.tools: tests/peers/requirements.txt benchmarks/requirements.txt Makefile
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install -q torch==2.13.0
	$(BENCH)/bin/python -m pip install -q -r tests/peers/requirements.txt -r benchmarks/requirements.txt
	$(BENCH)/bin/python -m pip install -q --no-deps mosaicml-streaming==0.13.0 llm-foundry==0.22.0 litdata==0.2.76 datatrove==0.10.1
	@touch $@

bench: $(BENCH)/.tools cpp-packages
	$(BENCH)/bin/python -m pip install -q .
	cmake --preset release > /dev/null
	cmake --build --preset release --target core_bench --parallel $(JOBS)
	cmake --preset avx2 > /dev/null
	cmake --build --preset avx2 --target core_bench --parallel $(JOBS)
	$(BENCH)/bin/python benchmarks/data.py
	$(BENCH)/bin/python benchmarks/throughput.py
	$(BENCH)/bin/python benchmarks/scale.py
	$(BENCH)/bin/python benchmarks/packing.py
	$(BENCH)/bin/python benchmarks/drop_in.py
	$(BENCH)/bin/python benchmarks/training.py
	$(BENCH)/bin/python benchmarks/preparing.py
	$(BENCH)/bin/python benchmarks/faults.py
	$(BENCH)/bin/python benchmarks/streaming_package.py
	$(BENCH)/bin/python benchmarks/report.py

micro: build
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-columns=median,iqr,rounds

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: $(VENV)/.tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

types: build
	$(BIN)/mypy
	$(BIN)/stubtest stoker._core --allowlist tests/stubtest_allowlist.txt --ignore-unused-allowlist

clean:
	rm -rf build dist .demo $(VENV) $(PEERS) $(DEBUG) $(BENCH)
