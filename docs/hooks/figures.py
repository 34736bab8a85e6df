"""Figures, drawn when the site is built: ``docs/figures/NAME.py`` becomes ``figures/NAME.svg``."""

import importlib.util
import io
from pathlib import Path
from types import ModuleType

import matplotlib
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).parents[1] / "figures"
# Text as text, and the same file from the same data.
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "ridgeline", "font.family": "sans-serif"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted(FOLDER.glob("*.py")):
        drawn = svg(load(path))
        files.append(File.generated(config, f"figures/{path.stem}.svg", content=drawn))
    return files


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"figure_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def svg(figure: ModuleType) -> str:
    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.draw().savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
