"""Formulas as MathML, which browsers set by themselves: no script, and no network.

They need a font for it. Where the reader's system has none, the site's is fetched.
"""

import html
import importlib.resources
import re

from latex2mathml.converter import convert
from mkdocs.structure.files import File


_FONT = "STIXTwoMath-Regular.ttf"
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>',
    re.DOTALL,
)
_PRIME = '<mi class="prime">'  # for the style sheet
_NUMBER = re.compile(r"\\tag\{(\w+)\}")


def on_files(files, config):
    """Called by MkDocs with what the site is made of."""
    font = importlib.resources.files("ziamath.fonts") / _FONT
    files.append(File.generated(config, f"fonts/{_FONT}", content=font.read_bytes()))
    return files


def on_page_content(content, **_):
    """Called by MkDocs with the HTML of each page."""
    return _FORMULA.sub(_as_mathml, content)


def _as_mathml(formula):
    tex = html.unescape(formula["tex"]).strip()
    if formula["tag"] == "span":
        return _convert(tex, "inline")
    number = "".join(f"<span>({number})</span>" for number in _NUMBER.findall(tex))
    mathml = _convert(_NUMBER.sub("", tex), "block")
    return f'<div class="formula">{mathml}{number}</div>'


def _convert(tex, display):
    return convert(tex, display=display).replace("<mi>&#x02032;", _PRIME + "&#x02032;")
