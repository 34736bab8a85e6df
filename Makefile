PYTHON ?= python3
BIN := .venv/bin
SERVING := .venv-serving/bin
# Most installed modules are never imported, so none is byte-compiled before its first import.
INSTALL := pip install --no-compile
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)

.PHONY: demo test test-serving bench docs lint clean

demo: .venv/.demo
	$(BIN)/ridgeline demo

test: .venv/.test lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

# vLLM has an environment of its own: it holds transformers and numpy below the versions of .venv.
test-serving: .venv-serving/.test
	$(SERVING)/python -m pytest tests/serving -n 2 --dist loadfile

bench: .venv/.demo
	$(BIN)/ridgeline bench decode --csv benchmarks/results/decode.csv --plot benchmarks/results/decode.png

docs: .venv/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict

lint: .venv/.test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror csrc/*

# The core is compiled again only when something it is built from changed; Python edits take effect at once.
.venv/.python: constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/$(INSTALL) -c constraints.txt torch numpy scikit-build-core nanobind cmake ninja
	touch $@

.venv/.demo: .venv/.python $(BUILD_INPUTS)
	$(BIN)/$(INSTALL) -c constraints.txt --no-build-isolation -e ".[cli,hf,plan]"
	touch $@

.venv/.test: .venv/.demo
	$(BIN)/$(INSTALL) -c constraints.txt --no-build-isolation -e ".[cli,hf,plan,train,test,docs]"
	touch $@

.venv-serving/.python: constraints-serving.txt
	$(PYTHON) -m venv .venv-serving
	$(SERVING)/$(INSTALL) -c constraints-serving.txt torch numpy
	$(SERVING)/$(INSTALL) --no-deps -r constraints-serving.txt
	touch $@

# A wheel, for which the core that .venv has compiled is not compiled again.
.venv-serving/.test: .venv-serving/.python .venv/.python $(BUILD_INPUTS) $(shell find src -name '*.py')
	$(BIN)/pip wheel --no-build-isolation --no-deps -w build/wheel .
	$(SERVING)/$(INSTALL) --no-deps --force-reinstall build/wheel/ridgeline-*.whl
	touch $@

clean:
	rm -rf .venv .venv-serving build
