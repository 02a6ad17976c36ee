# make demo    a proxy, an agent and a small web page, seen through the tunnel (ONCE=1: check and end)
#              CONSOLE=1: a whole installation with its console
# make demo-cluster  deploy/compose without containers, under load: a proxy is killed, then a copy of the API;
#              needs redis-server, postgresql, nginx  (ONCE=1: check and end)
# make test    the tests, in one process more than there are cores  (ARGS="-k name" goes to pytest)
# make marks   whether a test takes more than a second and is not marked slow: on a quiet machine
# make long    the long variants of some tests: a few minutes
# make interop every case with every other yamux implementation: some minutes, and Go, cargo, npm
# make conformance  the same, and writes docs/conformance.md from it
# make fuzz    every fuzz target for a share of SECONDS=60  (TARGETS=engine_pair: that one; needs clang)
# make sanitize  the multiplexer's and the pump's tests under address and undefined-behaviour sanitizers
# make soak    commands for MINUTES=30 while every part that they need is restarted (needs sshd)
# make check   format, lint, types, stubs, layers           (make -k check: does not stop at the first error)
# make measure-console  how fast the console is, in Chromium: a minute
# make bench   tunnelmux and its peers side by side: 20 minutes, nginx, wrk  (ARGS=--help)
# make failures  docs/failures.md, from killing and freezing each part: 20 minutes, as root (see --help)
# make bench-fleet   10,000 agents over two nodes of a cluster, one of which is killed: 6 minutes (needs redis-server)
# make bench-gateway   the ways of SSH to a device, ours beside OpenSSH as a jump host: 10 minutes
# make build   the compiled modules, in place, and vendor where npm is there
# make vendor  xterm.js for the console's terminal and player, pinned, by npm
# make clean   removes all that these made
#
# Each makes .venv if needed, and makes it again or rebuilds when its sources have changed.
# PYTHON=... chooses the Python when .venv is made.

MAKEFLAGS += --no-print-directory

BIN := .venv/bin
LOG := build/make.log
PYX := $(wildcard src/tunnelmux/*.pyx src/tunnelmux/*/*.pyx)
PXD := $(wildcard src/tunnelmux/*.pxd src/tunnelmux/*/*.pxd)
COMPILED := $(subst /,.,$(PYX:src/%.pyx=%))
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo vendor measure-console test marks long interop conformance fuzz sanitize soak check bench bench-fleet bench-gateway failures demo-cluster build clean format format-check lint types stubs layers

demo: build $(if $(CONSOLE),.venv/.quickstart)
	@$(BIN)/tunnelmux demo $(if $(CONSOLE),--console) $(if $(ONCE),--once)

# One process more than cores, for tests wait much: 4 at most, which memory bears on any machine.
PROCESSES := $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 4 ? cores + 1 : 4)))

test: .venv/.test build
	@$(BIN)/python -m pytest -n $(PROCESSES) $(ARGS)

marks: .venv/.test build
	@PYTHONPATH=tests $(BIN)/python -m support.slow_marks -n auto --maxprocesses 4 $(ARGS)

long: .venv/.test build
	@$(BIN)/python -m pytest -m long --long $(ARGS)

interop: .venv/.test build
	@$(BIN)/python -m pytest tests/interop --interop $(ARGS)

conformance: interop
	@PYTHONPATH=tests $(BIN)/python -m support.conformance build/conformance.json docs/conformance.md
	@echo "conformance: docs/conformance.md is made from this run"

# Both build their own modules under build/, and do not touch those in src/. The second leaves slow
# tests out: those that watch resident memory would see the sanitizer's own.
fuzz: .venv/.fuzz build/fuzz/.built
	@PYTHONPATH="$(CURDIR)/build/fuzz/lib" $(BIN)/python tests/fuzz $(or $(SECONDS),60) $(TARGETS)

SANITIZED_TESTS := tests/mux tests/fuzz tests/transports tests/pump \
	tests/http/test_head_scanner.py tests/http/test_response_scanner.py tests/http/test_chunk_scanner.py \
	tests/http/test_followers.py tests/proxy/test_both_paths.py \
	tests/http/test_cookies.py tests/http/test_fields.py \
	tests/proxy/test_kept_visitor.py tests/proxy/test_carried_closes.py \
	tests/proxy/test_direct_visitors.py tests/proxy/test_disagreeing_agents.py \
	tests/proxy/test_secure_visitors.py tests/access/test_rules.py tests/access/test_both_ways_agree.py
sanitize: .venv/.test build/sanitize/.built
	@LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so) $$($${CC:-cc} -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
		PYTHONMALLOC=malloc PYTHONPATH="$(CURDIR)/build/sanitize/lib" \
		$(BIN)/python -m pytest -p no:cacheprovider -o timeout=300 -m 'not slow' \
		$(or $(ARGS),$(SANITIZED_TESTS))

soak: .venv/.test build
	@PYTHONPATH=tests $(BIN)/python -m soak $(or $(MINUTES),30) $(ARGS)

measure-console: .venv/.test build
	@PYTHONPATH=tests $(BIN)/python tests/console/measure.py

check: format-check lint types stubs layers
	@echo "check: format, lint, types, stubs and layers are in order"

format-check: .venv/.check
	@$(BIN)/ruff format --quiet --diff .

lint: .venv/.check
	@$(BIN)/ruff check --quiet --output-format concise .

types: .venv/.check
	@$(BIN)/mypy --no-error-summary

stubs: .venv/.check build
	$(call quietly,$(BIN)/python -m mypy.stubtest --concise --allowlist .ci/stubtest-allowlist \
		$(COMPILED))

layers: .venv/.check
	$(call quietly,$(BIN)/lint-imports)

bench: .venv/.bench build
	@$(BIN)/python -m bench $(ARGS)

failures: .venv/.bench .venv/.test build
	@$(BIN)/python -m bench.failures $(ARGS)

demo-cluster: .venv/.bench .venv/.test .venv/.quickstart build
	@$(BIN)/python -m bench.cluster $(if $(ONCE),--once)

bench-fleet: .venv/.bench build
	@$(BIN)/python -m bench.node_loss $(ARGS)

bench-gateway: .venv/.bench .venv/.test build
	@$(BIN)/python -m bench.gateway $(ARGS)

build: .venv/.built
	@.ci/vendor --check 2> /dev/null || ! command -v npm > /dev/null || .ci/vendor || true

vendor:
	@.ci/vendor

format: .venv/.check
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

clean:
	@rm -rf src/tunnelmux/console/vendor
	@rm -rf .venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache .hypothesis
	@rm -f src/tunnelmux/*.so src/tunnelmux/*/*.so
	@find src tests bench cmd -name __pycache__ -prune -exec rm -rf {} +

# Long output goes to $(LOG), which is shown after a failure.
define quietly
	@mkdir -p build
	@{ $(1); } > $(LOG) 2>&1 || { cat $(LOG) >&2; exit 1; }
endef

.venv/.tools:
	@command -v "$${CC:-cc}" > /dev/null || { echo "No C compiler: the compiled modules need one" \
		"(on Debian: apt-get install build-essential)" >&2; exit 1; }
	@rm -rf .venv
	@python=$$(PYTHON="$(PYTHON)" .ci/find-python) && echo "making .venv with $$python" \
		&& "$$python" -m venv .venv
	$(call quietly,$(PIP) install --upgrade "pip>=25.1")
	@touch $@

# An editable install with its build tools beside it, so that a rebuild needs no network.
.venv/.installed: pyproject.toml setup.py .venv/.tools
	@echo "installing what tunnelmux needs"
	$(call quietly,$(PIP) install --group build && \
		TUNNELMUX_SKIP_COMPILE=1 $(PIP) install --no-build-isolation --editable .)
	@touch $@

.venv/.built: .venv/.installed $(PYX) $(PXD)
	@echo "building the compiled modules"
	$(call quietly,$(BIN)/python setup.py build_ext --inplace --parallel 2)
	@touch $@

OTHER_BUILD = setup.py --quiet build --parallel 2 --build-lib $(@D)/lib --build-temp $(@D)/temp
SOURCES := $(PYX) $(PXD) $(shell find src/tunnelmux -name '*.py')
CLANG := $(firstword $(foreach name,clang clang-19 clang-16 clang-14,$(shell command -v $(name))))

build/fuzz/.built: .venv/.installed $(SOURCES)
	@test -n "$(CLANG)" || { echo "No clang: counting branches for libFuzzer needs it" \
		"(on Debian: apt-get install clang)" >&2; exit 1; }
	@echo "building the modules to fuzz"
	$(call quietly,CC=$(CLANG) TUNNELMUX_FUZZ=1 $(BIN)/python $(OTHER_BUILD))
	@touch $@

build/sanitize/.built: .venv/.installed $(SOURCES)
	@echo "building the modules with sanitizers"
	$(call quietly,TUNNELMUX_SANITIZE=1 $(BIN)/python $(OTHER_BUILD))
	@touch $@

.venv/.fuzz: .venv/.installed
	$(call quietly,$(PIP) install --group fuzz)
	@touch $@

.venv/.bench: .venv/.installed
	$(call quietly,$(PIP) install --group bench)
	@touch $@

.venv/.quickstart: .venv/.installed
	@echo "installing what the console needs"
	$(call quietly,TUNNELMUX_SKIP_COMPILE=1 $(PIP) install --no-build-isolation --editable ".[quickstart]")
	@touch $@

.venv/.test: .venv/.installed
	$(call quietly,$(PIP) install --group test)
	@touch $@

.venv/.check: .venv/.installed
	$(call quietly,$(PIP) install --group check)
	@touch $@
