# `make demo` and `make test` do all their own set-up. An active virtual or conda environment is used as it is;
# otherwise .venv is made here. On Windows without make, use the lines in README.md.
PYTHON ?= python3
CONDA_ENV := $(if $(filter base,$(CONDA_DEFAULT_ENV)),,$(CONDA_PREFIX))
ENV := $(firstword $(VIRTUAL_ENV) $(CONDA_ENV) .venv)
PY := $(ENV)/$(if $(filter Windows_NT,$(OS)),Scripts/python.exe,bin/python)
CORE := $(ENV)/.cookbook-core
TEST := $(ENV)/.cookbook-test
BROWSER := $(ENV)/.cookbook-browser
SITE := $(ENV)/.cookbook-site
WORKERS ?= 2
NOTEBOOK ?= 01

TOOLS := .venv-tools/.cookbook-tools
WIDGETS := .venv-widgets/.cookbook-widgets
UNSLOTH := .venv-unsloth/.cookbook-unsloth

GPU := $(ENV)/.cookbook-gpu
TRAINERS := llama-factory litgpt
TRAINER := $(TRAINERS:%=.venv-%/.cookbook-trainer)

.PHONY: demo test quality browser widgets tools unsloth bench bench-gpu trainers lab lint notebooks site clean
.DEFAULT_GOAL := demo

demo: $(CORE) ## fine-tune a real model and show what changed
	@$(PY) -m cookbook run $(NOTEBOOK) -p PROFILE cpu

test: $(TEST) ## unit tests, every notebook at smoke, the command line
	@$(PY) -m pytest -n $(WORKERS) --dist loadgroup

quality: $(TEST) ## train on the real model and assert what it must reach
	@$(PY) -m pytest tests/quality -s -n $(WORKERS) --dist loadfile

browser: $(BROWSER) site ## JupyterLab and the site in the system's Chromium; screenshots go to runs/screenshots
	@$(PY) -m pytest tests/browser

widgets: $(WIDGETS) ## the widgets on the versions that Colab has
	@.venv-widgets/bin/python -c 'import ipywidgets; assert ipywidgets.__version__ == "7.7.1", ipywidgets.__version__'
	@PYTHONPATH=. .venv-widgets/bin/python -m pytest tests/unit -k widget

tools: $(TOOLS) ## read the exports with Axolotl's, LLaMA-Factory's and Together's own code
	@.venv-tools/bin/python -m pytest tests/tools

unsloth: $(UNSLOTH) ## Unsloth as the engine of 01, and every notebook at smoke on the lowest versions of our stack
	@PYTHONPATH=. .venv-unsloth/bin/python -m pytest -n $(WORKERS) --dist loadgroup \
	  tests/notebooks/test_smoke.py tests/notebooks/test_unsloth.py \
	  $(addprefix tests/unit/test_,engines.py fused.py answer_trainer.py memory.py)

bench: $(CORE) ## training, evaluation and memory beside other trainers, into docs/benchmark; about three hours
	@$(PY) -m bench

bench-gpu: $(GPU) ## 01 on a CUDA GPU; speed and memory with random weights in well-known shapes, into docs/benchmark/gpu.md
	@$(PY) -m bench.gpu
	@$(PY) -m cookbook run 01 -p PROFILE gpu -p MODEL smollm2-135m-instruct --output-dir runs/bench-gpu/01

trainers: $(TRAINER) ## environments of other trainers, for bench

lab: $(CORE) ## open the notebooks in JupyterLab
	@$(PY) -m jupyterlab notebooks

lint: $(TEST)
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .

notebooks: $(CORE) ## run the notebooks at the cpu profile and write their outputs back, cleaned
	@$(PY) -m cookbook.publish

site: $(SITE) ## all notebooks as web pages with a search, from their committed outputs: site/html/index.html
	@$(PY) -m sphinx -q -W --keep-going -c docs -d site/doctrees . site/html
	@$(PY) docs/check_links.py site/html

clean:
	rm -rf .venv .venv-* runs site .pytest_cache .ruff_cache *.egg-info

$(PY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "Making the environment $(ENV)"
	@$(PYTHON) -m venv $(ENV)

$(CORE): pyproject.toml | $(PY)
	@echo "Installing the cookbook into $(ENV) (some minutes and about 2 GB, once)"
	@$(PY) -m pip install -q -e .
	@touch $@

$(TEST): pyproject.toml | $(PY)
	@echo "Installing the cookbook and its tests into $(ENV) (some minutes and about 2 GB, once)"
	@$(PY) -m pip install -q -e ".[test]"
	@touch $@ $(CORE)

$(GPU): pyproject.toml | $(PY)
	@$(PY) -m pip install -q -e ".[gpu]"
	@touch $@ $(CORE)

$(SITE): pyproject.toml | $(PY)
	@$(PY) -m pip install -q -e ".[site]"
	@touch $@ $(CORE)

$(BROWSER): pyproject.toml | $(TEST)
	@$(PY) -m pip install -q -e ".[test,browser]"
	@touch $@ $(TEST) $(CORE)

# Two packages of its own; whatever else is imported comes from the main environment, which stands behind them.
$(WIDGETS): $(TEST)
	@echo "Making the environment .venv-widgets"
	@$(PY) -m venv .venv-widgets
	@.venv-widgets/bin/python -m pip install -q ipywidgets==7.7.1 ipykernel==6.17.1
	@where='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	$(PY) -c "$$where" > "$$(.venv-widgets/bin/python -c "$$where")/zz_main.pth"
	@touch $@

$(TOOLS): pyproject.toml tests/tools/requirements.txt
	@echo "Making the environment .venv-tools (some minutes and about 2 GB, once)"
	@$(PYTHON) -m venv .venv-tools
	@.venv-tools/bin/python -m pip install -q -e ".[test]"
	@.venv-tools/bin/python -m pip install -q --no-deps -r tests/tools/requirements.txt
	@touch $@

# Of the stack the lowest versions that pyproject.toml allows, so that they stay true. A torchvision made for another
# torch breaks imports, and a torchao warns of itself in every notebook; nothing here needs either.
LOWEST := accelerate bitsandbytes datasets peft transformers trl
$(UNSLOTH): pyproject.toml
	@echo "Making the environment .venv-unsloth (some minutes and about 2 GB, once)"
	@$(PYTHON) -m venv .venv-unsloth
	@.venv-unsloth/bin/python -m pip install -q "torch>=2.11,<2.14"
	@$(PYTHON) tests/lowest.py $(LOWEST) > .venv-unsloth/lowest.txt
	@.venv-unsloth/bin/python -m pip install -q -c .venv-unsloth/lowest.txt -e ".[unsloth,test]"
	@.venv-unsloth/bin/python -c 'import torchvision' 2> /dev/null || .venv-unsloth/bin/python -m pip uninstall -q -y torchvision
	@.venv-unsloth/bin/python -m pip uninstall -q -y torchao
	@touch $@

.venv-%/.cookbook-trainer: bench/trainers/%.txt
	@echo "Making the environment .venv-$* (some minutes and about 1 GB, once)"
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python -m pip install -q torch==2.13.0
	@.venv-$*/bin/python -m pip install -q --no-deps -r $<
	@touch $@
