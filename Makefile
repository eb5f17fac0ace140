# Targets make what they need in .venv; nothing else on the machine is changed.
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
# Tests that only compute, and those with long patience, run two at a time; those that look at the clock run alone.
BESIDE := --numprocesses 2 --dist loadfile

.PHONY: help
help: ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: serve
serve: $(VENV)/.runtime ## start Redis, worker and service here and ask a first question
	@$(BIN)/erase-serve up

.PHONY: test
test: $(VENV)/.dev ## run all tests, the real stack included
	@$(BIN)/python -m pytest $(BESIDE) tests/erase tests/bench tests/deploy
	@$(BIN)/python -m pytest $(BESIDE) tests/system tests/faults
	@$(BIN)/python -m pytest tests/service tests/worker

# What meets transformers itself: models, their images, pruning in their forward, and the engine beside their generate.
MEETING := test_batches test_flash test_golden test_images test_pruning test_pruning_refusals test_vision_encoder \
  engine/test_engine_answers engine/test_engine_architectures engine/test_engine_prefill engine/test_loading \
  engine/test_other_models engine/test_own_methods engine/test_prompt
.PHONY: test-oldest
test-oldest: $(VENV)/.oldest ## run the library's tests that meet transformers with the oldest supported one
	@PYTHONPATH=$(VENV)/oldest $(BIN)/python -m pytest $(BESIDE) $(MEETING:%=tests/erase/%.py)

.PHONY: check
check: $(VENV)/.dev ## lint, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/python -m mypy

.PHONY: audit
audit: $(VENV)/.audit ## ask PyPI for known weaknesses of the pinned versions (needs the internet)
	@$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

.PHONY: format
format: $(VENV)/.dev ## format the code and sort imports
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: docs
docs: $(VENV)/.dev ## write the generated pages and the dashboard again
	@$(BIN)/python -m worker.settings > docs/settings.md
	@$(BIN)/python deploy/grafana/build_dashboard.py

.PHONY: clean
clean: ## remove the virtual environment and all local state
	rm -rf $(VENV) .erase

$(VENV)/.runtime: pyproject.toml constraints.txt deploy/install.sh
	@bash deploy/install.sh $(VENV) .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@bash deploy/install.sh $(VENV) '.[dev]'
	@touch $@

# An environment of its own: its dependencies must not replace ours.
$(VENV)/.audit: $(VENV)/.runtime
	@$(BIN)/python -m venv $(VENV)/audit
	@$(VENV)/audit/bin/pip install --disable-pip-version-check --quiet 'pip-audit==2.10.1'
	@touch $@

# Beside the environment, found first through PYTHONPATH: everything else, torch included, stays as it is.
$(VENV)/.oldest: $(VENV)/.dev
	@rm -rf $(VENV)/oldest
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $(VENV)/oldest \
	  'transformers==5.17.0' 'huggingface-hub<2'
	@touch $@
