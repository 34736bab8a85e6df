"""What the figures draw is what the paper (arXiv 2505.21487) and the definitions say."""

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType

import pytest
from docs_pages import ROOT


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data(name: str):
    return loaded(ROOT / "docs" / "figures" / f"{name}.py").data()


def test_cache_per_rank_is_the_papers_table():
    assert data("cache_per_rank") == {
        "MHA": [8192, 4096, 2048, 1024],
        "GQA-4": [2048, 1024, 512, 512],
        "MLA": [1152, 1152, 1152, 1152],
        "GLA-2": [1152, 640, 640, 640],
        "GTA-4": [1152, 640, 384, 384],
    }


def test_records_have_the_sizes_of_the_spec():
    from ridgeline import CacheSpec

    specs = {
        "MHA": CacheSpec.gqa(8, 128),
        "GQA-2": CacheSpec.gqa(2, 128),
        "MQA": CacheSpec.gqa(1, 128),
        "GTA-2": CacheSpec.gta(2, 128),
        "MLA": CacheSpec.mla(512, 64),
        "GLA-2": CacheSpec.gla(2, 256, 64),
    }
    drawn = {name: sum(width for _, width in parts) for name, parts in data("records").items()}
    assert drawn == {name: spec.elements_per_token for name, spec in specs.items()}


def test_intensity_is_the_exact_one():
    """FLOP of scores and values of 128 query rows over the bytes of a record."""
    rows = 128
    assert data("intensity") == pytest.approx(
        {
            "MHA": 1.0,
            "GQA-8": rows / 8,
            "GTA-8": 2 * rows * (128 + 128) / (2 * (8 * 128 + 64)),
            "GLA-2": 128.0,
            "MLA": 2 * rows * (576 + 512) / (2 * 576),
        }
    )


def test_a_rejected_response_sees_the_prompt_and_itself():
    seen = data("subtree_mask").tolist()
    prompt, chosen, again, rejected = range(6), range(6, 10), 10, range(11, 14)
    for query in (again, *rejected):
        # The prompt's last token is seen as its copy.
        keys = {*prompt} - {5} | {key for key in (again, *rejected) if key <= query}
        assert {key for key in range(14) if seen[query][key]} == keys
    for query in (*prompt, *chosen):
        assert {key for key in range(14) if seen[query][key]} == set(range(query + 1))


def test_the_same_data_give_the_same_file():
    hook = loaded(ROOT / "docs" / "hooks" / "figures.py")
    figure = loaded(ROOT / "docs" / "figures" / "cache_per_rank.py")
    drawn = hook.svg(figure)
    assert drawn == hook.svg(figure)
    assert ET.fromstring(drawn).tag.endswith("svg")
