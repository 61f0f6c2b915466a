"""Configuration of Sphinx; warnings are errors, see ``tox -e docs``."""
from __future__ import annotations

import doctest
import os
import sys
from importlib.metadata import version as version_of
from importlib.util import find_spec


sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "_ext"))

project = "postcommit"
author = "The postcommit founders"
copyright = "2026, the postcommit founders"
version = release = version_of("postcommit")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "reference",
]
exclude_patterns = ["_build"]
# A literal block after two colons is a picture or a command, and not Python.
highlight_language = "text"
# A name in single backticks is a link to the reference, see _ext/reference.py.
default_role = "py:obj"

html_theme = "furo" if find_spec("furo") else "alabaster"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"postcommit {release}"

# Other documentation, where it can be reached. Elsewhere, a build needs no network, and
# these names are no links.
if os.environ.get("READTHEDOCS"):
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "pyramid": ("https://docs.pylonsproject.org/projects/pyramid/en/latest", None),
        "transaction": ("https://transaction.readthedocs.io/en/latest", None),
    }

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

# What an exception says is part of the example.
doctest_default_flags = doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1

# Each page stands for itself: its examples begin in an empty namespace, in a
# folder of their own.
doctest_global_setup = """
import logging, os, shutil, tempfile
from importlib.util import find_spec
logging.getLogger("postcommit").addHandler(logging.NullHandler())
folder = tempfile.mkdtemp()
os.chdir(folder)
"""
doctest_global_cleanup = """
os.chdir("/")
shutil.rmtree(folder)
"""
