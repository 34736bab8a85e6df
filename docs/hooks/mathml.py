r"""Mathematics as MathML, made when the site is built: a page needs no script and no other site.

Arithmatex finds ``$...$`` and ``$$...$$`` and leaves ``\(...\)`` and ``\[...\]``.
"""

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    content = INLINE.sub(lambda tex: mathml(tex[1], "inline"), content)
    return DISPLAY.sub(lambda tex: mathml(tex[1], "block"), content)


def mathml(tex: str, display: str) -> str:
    found = convert(html.unescape(tex), display=display)
    if "\\" in found:
        raise PluginError(f"mathml: a command is not known in {tex!r}")
    return found
