"""How the documentation is built: `make docs`, to build/docs. Nothing in the site is fetched from elsewhere."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "antdt"
author = copyright = "the antdt authors"
version = release = metadata.version("antdt")

extensions = ["myst_parser", "from_code"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
# Every link is checked, and a warning ends the build (-W): what cannot be found is a mistake.
nitpicky = True
suppress_warnings: list[str] = []

smartquotes = False  # of "--option" it would make a dash

html_theme = "furo"
html_title = f"antdt {version}"
html_static_path: list[str] = []
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#9a3412", "color-brand-content": "#9a3412"},
    "dark_css_variables": {"color-brand-primary": "#fb923c", "color-brand-content": "#fb923c"},
    "footer_icons": [],
}
# Words after the language of a block are for the tests: what is run, and how.
pygments_style = "tango"
pygments_dark_style = "monokai"
