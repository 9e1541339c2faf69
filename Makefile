.DEFAULT_GOAL := help
PYTHON ?= python3
RUN := .venv/bin/python

.PHONY: help demo test check model predictors figures clip notebooks lab clean

help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: .venv/installed  ## Install everything, then compare rung 04 with rung 03
	$(RUN) 04_continuous_batching.py --demo

test: .venv/installed  ## Run the tests
	$(RUN) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: .venv/installed  ## Format, lint and check types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

model: .venv/installed  ## Train the bundled model again (about half an hour on two cores)
	$(RUN) -m training.train
	$(RUN) -m training.revise

figures: .venv/installed  ## Measure every rung (under 40 minutes on two cores), draw the figures, update numbers in texts
	$(RUN) benchmarks/run.py
	$(RUN) benchmarks/plot.py
	$(RUN) -m benchmarks.claims

clip: .venv/installed  ## Render the clip that rung 12 plays (needs Chromium)
	$(RUN) -m benchmarks.clip

predictors: .venv/installed  ## Train the predictors of rungs 10 and 11 again (a quarter of a minute)
	$(RUN) -m training.predictors

notebooks: .venv/installed  ## Run all notebooks again and save their outputs
	$(RUN) -m notebooks.execute

lab: .venv/bin/jupyter-lab  ## Open the notebooks in Jupyter
	.venv/bin/jupyter-lab notebooks/00_tour.ipynb

clean:  ## Remove the environment and every cache
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

.venv/bin/jupyter-lab: .venv/installed
	.venv/bin/pip install --quiet --disable-pip-version-check --editable '.[lab]'
