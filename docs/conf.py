"""Configuration of the documentation site: `make docs` builds it into build/docs/html, with no network."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "src"), str(Path(__file__).parent / "_ext")]

import headscope  # noqa: E402

project = "headscope"
author = "headscope contributors"
copyright = f"2026, {author}. MIT license"
version = release = headscope.__version__
language = "en"
default_role = "code"  # docstrings write `names` as markdown does

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_copybutton",
    "sphinx_design",
    "error_pages",
    "site_notebooks",
    "site_explorer",
    "site_llms",
    "site_math",
    "site_reference",
]
exclude_patterns = ["_*", "**/.ipynb_checkpoints", "**/README.md"]
suppress_warnings = ["toc.empty_glob"]

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath", "html_image"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

# Notebooks are executed by site_notebooks before they are read, so that myst-nb finds all of them in the cache.
html_math_renderer = "mathml"
myst_update_mathjax = False

nb_execution_mode = "cache"
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "error"
nb_ipywidgets_js = {}

python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"headscope {version}"
html_logo = "_static/logo.svg"
html_favicon = "_static/logo.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"priority": 100})]
html_copy_source = True  # the plain text of each page, for llms.txt
html_show_sourcelink = False
html_show_search_summary = False  # it is fetched, which a page opened from a file cannot do
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2a6fb0", "color-brand-content": "#2a6fb0"},
    "dark_css_variables": {"color-brand-primary": "#7db6ea", "color-brand-content": "#7db6ea"},
    "top_of_page_buttons": [],
}
copybutton_exclude = ".linenos, .gp, .go"
