# make demo    a proxy, an agent and a small web page, seen through the tunnel (ONCE=1: check and end)
# make test    the tests                                    (ARGS="-k name" goes to pytest)
# make check   format, lint, types, stubs, layers           (make -k check: all that is wrong)
# make bench   the micro-benchmarks                         (ARGS=frame runs that one)
# make build   the compiled modules, in place
# make clean   remove all that these made
#
# Each makes .venv by itself, and makes it new or rebuilds when what it depends on changed.
# PYTHON=... chooses the Python of a .venv that is still to be made.

MAKEFLAGS += --no-print-directory

BIN := .venv/bin
LOG := build/make.log
PYX := $(wildcard src/tunnelmux/_*.pyx)
COMPILED := $(PYX:src/tunnelmux/%.pyx=tunnelmux.%)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test check bench build clean format format-check lint types stubs layers

demo: build
	@$(BIN)/tunnelmux demo $(if $(ONCE),--once)

test: .venv/.test build
	@$(BIN)/python -m pytest $(ARGS)

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

bench: build
	@$(BIN)/python bench $(ARGS)

build: .venv/.built
	@:

format: .venv/.check
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

clean:
	@rm -rf .venv build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache \
		.import_linter_cache .hypothesis
	@rm -f src/tunnelmux/*.so src/tunnelmux/*.c
	@find src tests bench cmd -name __pycache__ -prune -exec rm -rf {} +

# What takes long and says much writes to $(LOG), which is shown when it fails.
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

.venv/.built: .venv/.installed $(PYX) $(wildcard src/tunnelmux/*.pxd)
	@echo "building the compiled modules"
	$(call quietly,$(BIN)/python setup.py build_ext --inplace --parallel 2)
	@touch $@

.venv/.test: .venv/.installed
	$(call quietly,$(PIP) install --group test)
	@touch $@

.venv/.check: .venv/.installed
	$(call quietly,$(PIP) install --group check)
	@touch $@
