# The environment is made on first use, in .venv, with the exact versions in requirements.lock.
# Needed: Python 3.11 or later with its venv module, and make. uv is used if it is installed, otherwise fetched into .uv.

PYTHON ?= python3
PROFILE ?= mini
CORES ?=
DATA ?=
REPO ?=
CLUSTER ?=
MODEL ?= mini
DRY_RUN ?=
UV := $(or $(shell command -v uv 2>/dev/null),.uv/bin/uv)
BIN := .venv/bin
NOTEBOOKS := $(wildcard notebooks/*.py)
TEST_NOTEBOOKS := results/test/notebooks

# What users give is text: neither make nor the shell should find commands in it.
$(foreach name,PROFILE CORES DATA REPO CLUSTER MODEL DRY_RUN,$(eval override $(name) := $$(value $(name))))
quoted = '$(subst ','\'',$($1))'
dry_run = $(if $(filter-out 0,$(DRY_RUN)),--dry-run)

# Containers often set this; importing torch and diffusers without their compiled files takes three times as long.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@echo "make TARGET [PROFILE=mini] [DATA=path] [CORES=number] [CLUSTER=slurm] [DRY_RUN=1]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "profiles: $(basename $(notdir $(wildcard workflow/profiles/*.yaml)))"

.PHONY: setup
setup: .venv/.done ## make the environment in .venv

.PHONY: lab
lab: .venv/.done ## open the course in JupyterLab
	cd notebooks && ../$(BIN)/jupyter lab 00_start_here.ipynb

.PHONY: reproduce
reproduce: .venv/.done ## run the notebooks of a PROFILE, then print its table; finished jobs are not run again
	@$(BIN)/python workflow/reproduce.py --cores=$(call quoted,CORES) --data=$(call quoted,DATA) \
		--cluster=$(call quoted,CLUSTER) $(dry_run) -- $(call quoted,PROFILE)

.PHONY: data
data: .venv/.done ## say which data sets and weights are here, and what to do next
	$(BIN)/python data_scripts/status.py --root=$(if $(DATA),$(call quoted,DATA),data)

.PHONY: quality
quality: .venv/.done ## measure the transfer of MODEL on the miniature: domain, layout, usefulness, speed; resumes
	@$(BIN)/python workflow/reproduce.py quality --cores=$(call quoted,CORES) --model=$(call quoted,MODEL) $(dry_run)

.PHONY: bench
bench: .venv/.done ## measure speed (the authors' loop, the paper's training, the main job); results in benchmarks/
	$(BIN)/python -m zodi.studies bench

.PHONY: record
record: .venv/.done ## copy the results that are there into the README and the notebooks' records
	$(BIN)/python workflow/record.py

.PHONY: records
records: .venv/.done ## make every record again, then the benchmarks and notebooks; takes hours, resumes; DRY_RUN=1 says why
	@$(BIN)/python workflow/records.py --cores=$(call quoted,CORES) --data=$(call quoted,DATA) $(dry_run)

.PHONY: test
test: lint ## lint, unit tests, and every notebook with toy parameters
	$(BIN)/python tests/course/prepare_notebooks.py $(TEST_NOTEBOOKS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope --nbval-lax tests $(TEST_NOTEBOOKS)

.PHONY: test-cluster
test-cluster: .venv/.done ## run PROFILE=paper-smoke through a real Slurm on this machine, killed in the middle and resumed
	ZODI_TEST_CLUSTER=1 $(BIN)/python -m pytest -v tests/workflow/test_cluster.py

.PHONY: test-browser
test-browser: .venv/.done ## test JupyterLab and the site in a headless Chromium; screenshots in results/browser
	ZODI_TEST_BROWSER=1 $(BIN)/python -m pytest -v tests/course/test_browser.py

.PHONY: lint
lint: .venv/.done ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: sync
sync: .venv/.done ## synchronise each notebook with its text twin, keeping outputs
	$(BIN)/jupytext --sync $(NOTEBOOKS)

.PHONY: notebooks
notebooks: sync ## execute the notebooks again, as if for the first time, and keep the outputs
	rm -rf results/course
	$(BIN)/python workflow/execute_notebooks.py $(NOTEBOOKS:.py=.ipynb)

.PHONY: badges
badges: .venv/.done ## write pyproject.toml's address and version into every badge and Colab cell; REPO=owner/name moves
	$(BIN)/python workflow/badges.py --repository=$(call quoted,REPO)

.PHONY: site
site: .venv/.done ## build the course as web pages from the executed notebooks: build/site/index.html
	$(BIN)/python workflow/site/build.py build/site

.PHONY: lock
lock: $(UV) ## update to the newest versions: requirements.lock and environment.yml
	"$(UV)" pip compile pyproject.toml --all-extras --universal --python-version 3.11 --fork-strategy fewest --upgrade \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header --quiet \
		--output-file requirements.lock
	$(MAKE) .venv/.done
	$(BIN)/python workflow/conda_environment.py > environment.yml

.PHONY: clean
clean: ## delete caches and the results of tests and smoke profiles; other results and .venv are kept
	rm -rf results/test results/smoke results/quality-smoke results/paper-smoke .pytest_cache .ruff_cache build *.egg-info
	find zodi workflow data_scripts tests notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

.uv/bin/uv:
	$(PYTHON) -m venv .uv || { echo "error: no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	.uv/bin/python -m pip install --quiet uv

.PHONY: python
python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: found $$($(PYTHON) --version), expected Python 3.11 or later: make ... PYTHON=python3.12" >&2; exit 2; }

.venv/.done: requirements.lock pyproject.toml | python $(UV)
	"$(UV)" venv --quiet --allow-existing --python "$(PYTHON)" .venv
	"$(UV)" pip sync --python $(BIN)/python --require-hashes requirements.lock
	"$(UV)" pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@touch $@
