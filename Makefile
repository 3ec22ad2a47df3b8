# Needs Python 3.11 with pip, bash and make; everything else goes into .venv. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install serve demo bench doctor test test-here test-engines test-serving test-compat lint test-next install-next tools dashboards constraints clean

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PORT ?= 8000
ARGS ?=

# SGLang opens source files in the default encoding, and the launcher prints what users write.
export LC_ALL ?= C.UTF-8

ENV := .venv
NEXT_ENV := .venv-next
COMPAT_ENV := .venv-compat
PROJECT := .[engine,gateway,model,train,eval]
# The SGLang after the pinned one, and what it needs: forced over the pins of pyproject.toml.
NEXT_PINS := sglang==0.5.23 torch==2.14.1 triton==3.8.0
COMPILE := uv pip compile pyproject.toml --quiet --all-extras --group dev --python-version 3.11 \
	--python-platform x86_64-manylinux_2_34 --no-emit-index-url --no-emit-find-links --no-annotate --no-header

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  variables: PORT=8000, ARGS='further options of the command', PYTHON=python3.11"

install: $(ENV)/.installed ## make .venv with everything in it (the others do so by themselves)

serve: $(ENV)/.installed ## start engine and gateway; Ctrl-C stops both
	@exec $(ENV)/bin/lychee-sgl serve --port $(PORT) $(ARGS)

demo: $(ENV)/.installed ## find a needle in a long text, sparse and dense; starts a server when none runs
	@exec $(ENV)/bin/lychee-sgl demo --url http://127.0.0.1:$(PORT) $(ARGS)

bench: $(ENV)/.installed ## measure speed against stock SGLang on this machine (ten minutes or so)
	@exec $(ENV)/bin/lychee-sgl bench cpu $(ARGS)

doctor: $(ENV)/.installed ## say what this machine can run and what is missing
	@exec $(ENV)/bin/lychee-sgl doctor --port $(PORT) $(ARGS)

lint: $(ENV)/.installed ## ruff, mypy, import rules
	$(ENV)/bin/ruff check .
	$(ENV)/bin/ruff format --check .
	$(ENV)/bin/mypy
	$(ENV)/bin/lint-imports --no-logo

test: $(ENV)/.installed ## lint and all tests, two runs at a time
	+@$(MAKE) --no-print-directory -j2 test-here test-engines test-serving

# Lint is no prerequisite: make would begin the other two runs before it came back to this one.
test-here: $(ENV)/.installed # lint, and what starts no engine
	@$(MAKE) --no-print-directory lint
	$(call pytest,not gpu and not interpret and not engine)
# Triton's interpreter has to be chosen before triton is imported, hence a run of its own.
	$(call pytest,interpret,TRITON_INTERPRET=1)

# An engine needs one processor, and whoever asks it mostly waits. Their lines come at the end, in one piece.
test-engines: $(ENV)/.installed # what starts engines: those of tests/live alone
	$(call quietly,engines,$(call pytest,engine and not gpu,,--ignore=tests/e2e))

test-serving: $(ENV)/.installed # and those with a gateway
	$(call quietly,serving,$(call pytest,engine and not gpu,,--ignore=tests/live))

test-compat: $(COMPAT_ENV)/.installed ## LangChain, LiteLLM and guidellm against the gateway, in .venv-compat
	$(COMPAT_ENV)/bin/pytest tests/compat $(ARGS)

test-next: $(NEXT_ENV)/.installed ## all tests on the next SGLang, in .venv-next
	$(NEXT_ENV)/bin/pytest $(ARGS)

tools: ## install Prometheus and Compose, which some tests use (Debian; they are skipped without)
	@command -v promtool >/dev/null && command -v docker-compose >/dev/null || { \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			prometheus docker-compose >/dev/null; }

dashboards: $(ENV)/.installed ## write the JSON of Grafana's dashboards
	$(ENV)/bin/python -m deploy.dashboards

constraints: $(ENV)/.installed ## resolve constraints.txt and constraints-next.txt anew
	PATH="$(ENV)/bin:$$PATH"; $(COMPILE) --upgrade -o constraints.txt >/dev/null
	printf '%s\n' $(NEXT_PINS) > $(ENV)/next-pins.txt
	PATH="$(ENV)/bin:$$PATH"; $(COMPILE) --upgrade --overrides $(ENV)/next-pins.txt -o constraints-next.txt >/dev/null

clean: ## remove environments, caches and builds (not the model in the user's cache)
	rm -rf $(ENV) $(NEXT_ENV) $(COMPAT_ENV) dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Byte-compiling costs a minute or two here, once; without it SGLang's first start takes over a minute longer.
$(ENV)/.installed: pyproject.toml constraints.txt
	$(call bootstrap,$(ENV),constraints.txt)
	@echo "installing into $(ENV) (several GB the first time)"
	$(ENV)/bin/uv pip install --python $(ENV) --compile-bytecode -c constraints.txt -e '$(PROJECT)' --group dev
	@touch $@

$(NEXT_ENV)/.installed: pyproject.toml constraints-next.txt
	$(call bootstrap,$(NEXT_ENV),constraints-next.txt)
	@echo "installing into $(NEXT_ENV) (several GB the first time)"
	$(NEXT_ENV)/bin/uv pip install --python $(NEXT_ENV) --compile-bytecode --overrides constraints-next.txt \
		-e '$(PROJECT)' --group dev
	@touch $@

$(COMPAT_ENV)/.installed: pyproject.toml
	$(call bootstrap,$(COMPAT_ENV),constraints.txt)
	$(COMPAT_ENV)/bin/uv pip install --python $(COMPAT_ENV) -e '.[gateway]' --group compat
	@touch $@

# Tests with such marks; none at all is no failure, for ARGS may name tests of another kind.
pytest = $(2) $(ENV)/bin/pytest -m '$(1)' $(3) $(ARGS) || [ $$? -eq 5 ]

# A command whose lines are shown when it has ended.
quietly = @status=0; ($(2)) >$(ENV)/$(1).log 2>&1 || status=$$?; cat $(ENV)/$(1).log; exit $$status

# An environment with uv in it. Distributions that split off `ensurepip` get theirs from the outer pip.
define bootstrap
@[ -n "$(PYTHON)" ] || { echo "no Python found: install Python 3.11 or set PYTHON=..." >&2; exit 1; }
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	|| { echo "$(PYTHON) is not Python 3.11: set PYTHON=/path/to/python3.11" >&2; exit 1; }
@if [ ! -x $(1)/bin/uv ]; then \
	echo "making $(1)"; \
	rm -rf $(1); \
	if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
		$(PYTHON) -m venv $(1); $(1)/bin/python -m pip install --quiet -c $(2) uv; \
	else \
		$(PYTHON) -m venv --without-pip $(1); \
		$(PYTHON) -m pip --python $(1)/bin/python install --quiet -c $(2) uv; \
	fi; \
fi
endef
