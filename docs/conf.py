"""How Sphinx builds the site: `.ci/run docs`, with warnings as errors."""

from __future__ import annotations

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
