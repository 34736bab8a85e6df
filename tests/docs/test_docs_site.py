"""The site: it builds without a warning, needs no other site, and says what the code says."""

import csv
import html
import importlib
import re
from pathlib import Path

import pytest
from docs_pages import ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config

API = {
    "ridgeline": "ridgeline",
    "cache": "ridgeline.cache",
    "layers": "ridgeline.layers",
    "models": "ridgeline.models",
    "roofline": "ridgeline.roofline",
    "preference": "ridgeline.training.preference",
    "transformers": "ridgeline.transformers",
    "trl": "ridgeline.trl",
    "flash_attn_interface": "ridgeline.flash_attn_interface",
    "flash_mla_interface": "ridgeline.flash_mla_interface",
    "testing": "ridgeline.testing",
    "gluon": "ridgeline.testing.gluon",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site; a broken link, anchor or page is an error."""
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(folder))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return folder


@pytest.fixture(scope="module")
def articles(site: Path) -> dict[str, str]:
    """What stands on each page, as HTML."""
    pages = {str(page.relative_to(site)): page.read_text("utf-8") for page in site.rglob("*.html")}
    found = {
        name: re.search(r"<article.*</article>", text, re.DOTALL) for name, text in pages.items()
    }
    return {name: article[0] for name, article in found.items() if article}


def test_nothing_comes_from_another_site(site):
    loaded = re.compile(
        r"""<(?:script|img|iframe)[^>]*src="https?:|<link[^>]*href="https?:[^"]*\.css"""
    )
    for page in site.rglob("*.html"):
        assert not loaded.search(page.read_text("utf-8")), page


@pytest.mark.parametrize("page", API)
def test_public_names_have_their_place(articles, page):
    module = importlib.import_module(API[page])
    article = articles[f"api/{page}/index.html"]
    documented = [name for name in module.__all__ if callable(getattr(module, name))]
    assert documented
    for name in documented:
        assert re.search(rf'id="{re.escape(API[page])}\.{name}[".]', article), name


def test_commands_are_listed_with_their_options(articles):
    text = re.sub(r"<[^>]+>", "", articles["commands/index.html"])
    for name in ("ridgeline demo", "ridgeline bench decode", "ridgeline plan search"):
        assert name in text
    assert "--num-latent-heads" not in text
    assert "--latent-heads" in text


def test_markdown_is_understood(articles):
    """No list, table, mathematics or directive is left as it was written."""
    left = re.compile(r"\n(?:[-*|]|\d+\.) |\\\(|\\\[|\$[^$\s]+\$|:::|--8<--")
    for name, article in articles.items():
        text = re.sub(r"<(pre|code|math)\b.*?</\1>", "", article, flags=re.DOTALL)
        for paragraph in re.findall(r"<p>.*?</p>", text, re.DOTALL):
            assert not left.search(paragraph), (name, paragraph)


def test_mathematics_is_mathml(articles):
    article = articles["operations/tied_decode/index.html"]
    assert article.count("<math") > 10
    assert "<msub><mi>d</mi><mi>s</mi></msub>" in article


def test_results_are_those_of_the_files(articles):
    text = html.unescape(re.sub(r"<[^>]+>", " ", articles["benchmarks/index.html"]))
    lines = (ROOT / "benchmarks" / "results" / "decode.csv").read_text("utf-8").splitlines()
    rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    shown = [row for row in rows if (row["batch"], row["length"]) == ("4", "8192")]
    for row in shown:
        cells = (
            f"{row['variant']} {row['heads']}/{row['cache_heads']}",
            f"{int(row['bytes_per_token']):,}",
            row["flop_per_byte"],
            f"{float(row['ms']):.2f}",
        )
        assert re.search(r"\s+".join(map(re.escape, cells)), text), cells
    assert "ridgeline bench decode --csv benchmarks/results/decode.csv" in text
