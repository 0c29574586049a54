"""Sphinx configuration; `make docs` builds the site into docs/_build/html."""

import hashlib
import importlib.metadata
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import sde_gen  # noqa: E402

project = "sde_gen"
author = "The sde_gen authors"
copyright = "the sde_gen authors"  # noqa: A001 - Sphinx's name
version = release = sde_gen.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "docstrings",
    "keys",
    "rooms",
]
exclude_patterns = ["_build", "_ext", "examples", "jupyter_execute"]
templates_path: list[str] = []

html_theme = "furo"
html_title = "sde_gen"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_domain_indices = False

# MathJax from a package, copied into the site: formulas are drawn without a network.
_mathjax = [file for file in importlib.metadata.files("sphinx-mathjax-offline") or () if file.name == "tex-svg-full.js"]
html_static_path += [str(_mathjax[0].locate())]
mathjax_path = "tex-svg-full.js"
mathjax3_config = {"svg": {"fontCache": "local"}}

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 4
default_role = "py:obj"
suppress_warnings = ["mystnb.unknown_mime_type"]

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints = "signature"
python_maximum_signature_line_length = 72
python_use_unqualified_type_names = True
add_module_names = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Shapes", "notes_style")]

# Tutorials are run once for each state of the library, and read from the cache after that.
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
_sources = sorted(Path(sde_gen.__file__).parent.rglob("*.py"))
_state = hashlib.sha256(b"".join(path.read_bytes() for path in _sources)).hexdigest()[:12]
nb_execution_cache_path = str(HERE / "_build" / "tutorials" / _state)
