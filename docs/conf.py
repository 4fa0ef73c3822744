"""How Sphinx builds the site: `.ci/run docs`, with warnings as errors."""

from __future__ import annotations

from typing import Any

import vhdkit

project = "vhdkit"
author = "The vhdkit authors"
project_copyright = "The vhdkit authors, Apache-2.0"
version = release = vhdkit.__version__

myst_enable_extensions = ["deflist"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
man_pages = [("reference/verbs", "vhdkit", "snapshot chains of VHD and AVHD images", author, 1)]
html_theme = "furo"
html_title = f"vhdkit {release}"

# Every heading is a target, so that links into pages are checked as well.
myst_heading_anchors = 3
# A single backquote stands for code in docstrings, as it does in Markdown.
default_role = "code"
add_module_names = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
exclude_patterns = ["_build"]


def keep_backslashes(_app: object, _context: object, lines: list[str]) -> None:
    """Let help texts have their backslashes, as in C:\\vms, which reStructuredText takes for escapes."""
    lines[:] = [line.replace(":\\", ":\\\\") for line in lines]


def setup(app: Any) -> dict[str, Any]:
    """Tell Sphinx of it."""
    app.connect("sphinx-click-process-options", keep_backslashes)
    app.connect("sphinx-click-process-description", keep_backslashes)
    return {"parallel_read_safe": True}
