"""How Sphinx builds these pages: ``make docs``."""

import re
from importlib import metadata
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]


project = "convoy"
author = copyright = "the convoy authors"
version = release = metadata.version("convoy-train")
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "deflist"]
myst_heading_anchors = 4
html_theme = "alabaster"
html_theme_options = {"description": "trains ordinary PyTorch CNNs in parallel", "page_width": "1100px"}
html_copy_source = False
nitpicky = True

# Every page is in the contents, without a list that would have to be kept; the index says in words what each is.
FIRST = ("tour", "plan", "compare", "report", "runs", "commands")


def add_contents(app: Sphinx, document: str, source: list[str]) -> None:
    if document == "index":
        pages = "\n".join([*FIRST, "*", "lab/README", "lab/*"])
        source[0] += f"\n```{{toctree}}\n:hidden:\n:glob:\n\n{pages}\n```\n"


OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)#]+\.md)(?:#[^)]*)?\)")


def name_outside_pages(app: Sphinx, document: str, source: list[str]) -> None:
    """Pages of the repository that are not in docs/ (README) are named; one that is not there stays a broken link."""
    folder = (Path(app.srcdir) / document).parent

    def named(found: re.Match[str]) -> str:
        target = (folder / found[2]).resolve()
        if target.is_relative_to(ROOT / "docs"):
            return found[0]
        return f"{found[1]} (`{target.relative_to(ROOT)}`)" if target.is_file() and ROOT in target.parents else found[0]

    source[0] = OUTSIDE.sub(named, source[0])


def setup(app: Sphinx) -> None:
    app.connect("source-read", add_contents)
    app.connect("source-read", name_outside_pages)
