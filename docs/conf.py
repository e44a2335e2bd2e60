"""Settings of the documentation; the common ones come from sphinx-astropy.

Nothing is fetched while the pages are built.
"""

import os

from sphinx_astropy.conf.v2 import *  # noqa: F403
from sphinx_astropy.conf.v2 import exclude_patterns, extensions, html_theme_options

from cyclestarnet import __version__

project = "cyclestarnet"
author = "The cyclestarnet developers"
copyright = author
version = release = __version__

# Links into other projects need their inventories from the network.
intersphinx_mapping = {}
nitpicky = False
extensions = [name for name in extensions if not name.startswith("sphinx_astropy.ext.intersphinx")]

# Mathematics without a network: MathJax comes with the pages. What is wider than the page is broken or scrolls.
extensions.append("sphinx-mathjax-offline")
html_css_files = ["pages.css"]

# The tutorial is executed when the pages are built.
extensions.append("myst_nb")
nb_execution_mode = "force"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
os.environ.pop("MPLBACKEND", None)  # with another than their own, notebooks have no figures

# Figures of the gallery are made from the code that the page shows.
plot_include_source = True
plot_html_show_source_link = plot_html_show_formats = False
plot_formats = [("png", 110)]

# tables/ holds parts that other pages include.
exclude_patterns = [*exclude_patterns, "tables/*"]

html_title = project
html_static_path = ["_static"]
html_last_updated_fmt = ""
html_theme_options = html_theme_options | {
    "show_nav_level": 1,
    "navigation_depth": 3,
    "navbar_persistent": ["search-button"],  # a field would take a second row of the screen of a laptop
}

autodoc_typehints = "none"  # the lists of parameters have them; short signatures would be cut amidst of one
numpydoc_xref_param_type = False
automodapi_inheritance_diagram = False
automodsumm_inherited_members = False
