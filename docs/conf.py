"""Sphinx configuration: `sphinx-build -W docs docs/_build`."""

project = "sde_gen"
author = "The sde_gen authors"
extensions = ["myst_nb", "sphinx.ext.mathjax"]
html_theme = "furo"
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "amsmath"]
