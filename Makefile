PYTHON ?= python3
BIN := .venv/bin
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)

.PHONY: demo test bench docs lint clean

demo: .venv/.demo
	$(BIN)/ridgeline demo

test: .venv/.test lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

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
	$(BIN)/pip install -c constraints.txt torch numpy scikit-build-core nanobind cmake ninja
	touch $@

.venv/.demo: .venv/.python $(BUILD_INPUTS)
	$(BIN)/pip install -c constraints.txt --no-build-isolation -e ".[cli,hf,plan]"
	touch $@

.venv/.test: .venv/.demo
	$(BIN)/pip install -c constraints.txt --no-build-isolation -e ".[cli,hf,plan,train,test,docs]"
	touch $@

clean:
	rm -rf .venv build
