# The two main commands are `make train` and `make test`. Each first installs its dependencies into .venv.
# To use another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
RUN_DIR ?= runs/bert
export TF_CPP_MIN_LOG_LEVEL ?= 2

PY := .venv/bin/python
PEERS := .venv-peers/bin/python
REFERENCES := .venv-references/bin/python
REFERENCES_INSTALLED := .venv-references/installed
# transformers 4, whose folder layout is different.
OLDER := .venv-references-4/bin/python
OLDER_INSTALLED := .venv-references-4/installed
DRAWS ?= 20
# The stamp is written last, so that an interrupted installation is never treated as finished.
INSTALLED := .venv/installed
PEERS_INSTALLED := .venv-peers/installed
LOCK := $(PY) -m uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --quiet --extra export --extra serve --extra tasks pyproject.toml

.PHONY: help install train demo test faults fuzz keras browser parity layouts check format bench results wheel lock clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | awk -F'\t' '{printf "make %-9s %s\n", $$1, $$2}'

install: $(INSTALLED)  ## create .venv from requirements/dev.txt

train: $(INSTALLED)  ## train a small BERT on the documentation of the installed Python packages (about six minutes)
	$(PY) -m tfzoo.train --flagfile=configs/bert.cfg --run_dir=$(RUN_DIR)

demo: $(INSTALLED)  ## pre-train briefly, fine-tune, evaluate, predict, export, verify and serve (a few minutes)
	$(PY) -m tfzoo.train --flagfile=configs/bert.cfg --flagfile=configs/demo.cfg --run_dir=runs/demo
	test -d runs/demo_labels || $(PY) -m tfzoo.corpus labels --num_labels=10 --output_dir=runs/demo_labels
	$(PY) -m tfzoo.train --task=classify --train_file=runs/demo_labels/train.tsv --validation_file=runs/demo_labels/dev.tsv \
	  --init_from=runs/demo --optimizer=muon --learning_rate=1e-3 --overrides=dropout=0.1 --epochs=5 --sequence_length=64 --run_dir=runs/demo_packages
	$(PY) -m tfzoo.evaluate --model_dir=runs/demo_packages --test_file=runs/demo_labels/test.tsv
	printf '%s\n' 'Returns the inverse of a matrix.' 'Opens a window with two buttons.' > runs/demo_labels/lines.txt
	$(PY) -m tfzoo.predict --model_dir=runs/demo_packages --input=runs/demo_labels/lines.txt
	$(PY) -m tfzoo.export --model_dir=runs/demo_packages --name=packages --output_dir=exports
	$(PY) export/verify.py exports
	$(PY) -m tfzoo.serve --model_name=packages --model_base_path=exports/savedmodel/packages --port=8500 --rest_api_port=8501 & \
	  server=$$!; trap 'kill $$server; wait $$server' EXIT; \
	  for address in grpc://localhost:8500 http://localhost:8501; do \
	    $(PY) serving/client.py $$address packages '{"text": ["Returns the inverse of a matrix."]}' --wait=120 || exit 1; \
	  done
	@echo 'To serve it again, with or without Docker: serving/README.md'
	@echo 'To use it from Python: tfzoo.pipeline("runs/demo_packages")(["Returns the inverse of a matrix."])'

# Two processes, one test file at a time each: every further process imports TensorFlow again. tests/conftest.py has the
# order of the files, in place of the number of their tests.
test: $(INSTALLED)  ## run the tests
	$(PY) -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

# A process for each file: in a single one, the graphs of all files would take 20 GB.
faults: $(INSTALLED)  ## run the long tests, such as those that kill processes and damage files
	@failed=; for file in $$(grep -rl --include='*_test.py' 'mark\.faults' tests | sort); do \
	  $(PY) -m pytest -m faults $$file || failed="$$failed $$file"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# Other inputs: make fuzz SEED=7 CASES=100000. The same command continues after a kill.
CASES ?= 2000
fuzz: SEED = 0
fuzz: $(INSTALLED)  ## damage users' files at random and count how they are read
	$(PY) -m tests.fuzz --seed=$(SEED) --cases=$(CASES)

keras: $(INSTALLED)  ## test every head, precision and XLA in every family through Keras
	$(PY) -m pytest -m keras

# Requires Debian's packages chromium and chromium-driver. PICTURES=FOLDER also writes pictures of the pages.
browser: $(INSTALLED)  ## test report.html and the server's page in headless Chromium
	$(PY) -m pytest -m browser tests/browser

# The seed determines the random models: make parity SEED=7
SEED ?= $(shell date +%s)
parity: $(INSTALLED) $(REFERENCES_INSTALLED)  ## compare every family with Hugging Face transformers, in both directions
	rm -rf build/parity
	$(REFERENCES) tests/assets/references.py --output=build/parity --draws=$(DRAWS) --seed=$(SEED)
	$(PY) -m tests.parity build/parity --page=docs/models.md
	$(PY) -m tests.parity build/parity/fresh --fresh
	$(REFERENCES) tests/assets/references.py --check build/parity

layouts: $(INSTALLED) $(REFERENCES_INSTALLED) $(OLDER_INSTALLED)  ## load, save and export folders written by transformers 4 and 5
	rm -rf build/layouts
	$(OLDER) tests/assets/layouts.py --output=build/layouts/4
	$(REFERENCES) tests/assets/layouts.py --output=build/layouts/5
	$(PY) -m tests.layouts build/layouts --export --output=docs/layouts.md
	$(OLDER) tests/assets/layouts.py --check=build/layouts/4
	$(REFERENCES) tests/assets/layouts.py --check=build/layouts/5

check: $(INSTALLED)  ## check lint, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(INSTALLED)  ## fix lint and formatting with ruff
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The first line checks the record, so that a broken line is not found after hours; the last draws its page.
bench: export BENCH_HISTORY = $(CURDIR)/benchmarks/history.jsonl
bench: $(INSTALLED) $(PEERS_INSTALLED)  ## run the benchmarks against KerasHub and Model Garden (in .venv-peers) and record the ratios
	$(PEERS) benchmarks/history.py
	$(PEERS) benchmarks/train_step.py
	$(PEERS) benchmarks/objectives.py
	$(PEERS) benchmarks/forward.py
	$(PEERS) benchmarks/attention.py
	$(PEERS) benchmarks/input.py
	$(PEERS) benchmarks/loop.py
	$(PEERS) benchmarks/finetune.py
	$(PEERS) benchmarks/translate.py
	$(PEERS) benchmarks/packing.py
	$(PEERS) benchmarks/predict.py
	$(PEERS) benchmarks/decode.py
	$(PY) benchmarks/prefill.py
	$(PEERS) benchmarks/serve.py
	$(PY) benchmarks/start.py
	$(PY) benchmarks/export.py
	$(PY) benchmarks/export.py --decode
	$(PY) benchmarks/export.py --llama
	$(PEERS) benchmarks/history.py

results: $(INSTALLED)  ## train all recipes and write docs/results.md (hours; recorded recipes are not repeated)
	$(PY) benchmarks/recipes.py
	$(PY) benchmarks/finetuned.py
	$(PY) benchmarks/language_tasks.py

wheel: $(INSTALLED)  ## build dist/*.whl
	$(PY) -m build --wheel --no-isolation

lock: $(INSTALLED)  ## update the lock files for every Python of pyproject.toml (UPGRADE=1 also upgrades versions that still fit)
	$(LOCK) $(if $(UPGRADE),--upgrade) --group dev --output-file requirements/dev.txt
	$(LOCK) $(if $(UPGRADE),--upgrade) --group peers --output-file requirements/peers.txt

clean:  ## remove environments, caches and builds, but not runs/
	rm -rf .venv .venv-peers .venv-references .venv-references-4 build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(INSTALLED): requirements/dev.txt
$(PEERS_INSTALLED): requirements/peers.txt
$(REFERENCES_INSTALLED): requirements/references.txt
$(OLDER_INSTALLED): requirements/references-4.txt
$(REFERENCES_INSTALLED) $(OLDER_INSTALLED):
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@
# A finished environment is updated in place; an unfinished one is removed first.
.venv/installed .venv-peers/installed:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "tfzoo needs Python 3.11-3.13; '$(PYTHON)' is not one of these; choose one with make PYTHON=python3.12 ..." >&2; exit 2; }
	test -e $@ || rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	rm -f $@
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	$(if $(filter $(INSTALLED),$@),$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .)
	touch $@
