# Everything runs through .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard ext/*.pyx ext/*.pxd ext/*.pxi ext/*.h) setup.py pyproject.toml

.PHONY: demo test test-debug test-sanitize lint bench kafka clean build build-debug

build: $(VENV)/.built

$(VENV)/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	@touch $@

# The engine alone: what `make demo` needs.
$(VENV)/.built: $(VENV)/.made $(SOURCES)
	$(BIN)/python -m pip install -q -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.made $(SOURCES)
	$(BIN)/python -m pip install -q -e '.[dev,bench]'
	@touch $(VENV)/.built $@

demo: $(VENV)/.built
	$(BIN)/python -m bench demo

# Two processes, a file's tests in one: most tests wait for other processes or for the clock.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
test: $(VENV)/.dev
	$(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint ext/*.pyx ext/*.pxd ext/*.pxi

# Bounds checks and assertions on, beside the normal build.
build-debug: $(VENV)/.dev
	SURGETANK_DEBUG=1 $(BIN)/python setup.py -q build_ext --build-lib build/debug --build-temp build/debug/temp
	cp ext/__init__.py build/debug/ext/

# All tests on it; `make test-debug TESTS=tests/unit` for some.
TESTS ?= tests
test-debug: build-debug
	SURGETANK_DEBUG=1 PYTHONSAFEPATH=1 PYTHONPATH=build/debug:$(CURDIR) \
	    $(PYTEST) --import-mode=append $(TESTS)

# The core against its model under AddressSanitizer and UndefinedBehaviorSanitizer: pointers, which bounds checks miss.
test-sanitize: $(VENV)/.dev
	SURGETANK_SANITIZE=1 $(BIN)/python setup.py -q build_ext --build-lib build/sanitize --build-temp build/sanitize/temp
	cp ext/__init__.py build/sanitize/ext/
	SURGETANK_SANITIZE=1 PYTHONSAFEPATH=1 PYTHONPATH=build/sanitize:$(CURDIR) \
	    LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
	    $(BIN)/python -m pytest --import-mode=append tests/property/test_schedule.py

bench: $(VENV)/.dev
	$(BIN)/python -m bench demo --json build/demo.json

# A real single-node Apache Kafka for hands-on use; prints its address, stops at Ctrl-C.
kafka: $(VENV)/.built
	$(BIN)/python -m bench kafka

clean:
	rm -rf build dist *.egg-info .venv .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache ext/*.so ext/*.c
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
