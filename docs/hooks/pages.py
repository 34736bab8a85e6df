"""Files of the repository as pages and files of the site, and links that find them there.

The mathematics of an operation stays beside its code, results beside the benchmarks. A link is
written as it works in the repository; on the site it leads to the page that the file has become.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "operations/attention.md": "src/ridgeline/ops/attention/README.md",
    "operations/paged_decode.md": "src/ridgeline/ops/paged_decode/README.md",
    "operations/tied_decode.md": "src/ridgeline/ops/tied_decode/README.md",
    "operations/merge.md": "src/ridgeline/ops/merge/README.md",
    "shipped_model.md": "src/ridgeline/models/pretrained/gla-stdlib/README.md",
    "benchmarks/method.md": "benchmarks/README.md",
    "benchmarks/gpu_queue.md": "benchmarks/gpu_queue.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
FOLDERS = {
    "results": "benchmarks/results",
    "shipped_model": "src/ridgeline/models/pretrained/gla-stdlib",
}
FILES = (".csv", ".png", ".svg", ".json")
LINK = re.compile(r"(?<=\]\()([^)#\s:]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for uri, path in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for folder, path in FOLDERS.items():
        for found in sorted((ROOT / path).iterdir()):
            if found.suffix in FILES:
                uri = f"{folder}/{found.name}"
                files.append(File.generated(config, uri, abs_src_path=str(found)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = page.file.abs_src_path
    if source is None:
        return markdown
    uris = {Path(file.abs_src_path): file.src_uri for file in files if file.abs_src_path}

    def on_site(link: re.Match) -> str:
        uri = uris.get((Path(source).parent / link[0]).resolve())
        # A link that leads nowhere stays as it is, and the strict build refuses it.
        return (
            link[0] if uri is None else posixpath.relpath(uri, posixpath.dirname(page.file.src_uri))
        )

    return LINK.sub(on_site, markdown)
