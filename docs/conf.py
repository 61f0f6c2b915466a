"""Configuration of Sphinx; warnings are errors, see ``tox -e docs``."""
from __future__ import annotations

import doctest
from importlib.metadata import version as version_of


project = "postcommit"
author = "The postcommit founders"
copyright = "2026, the postcommit founders"
version = release = version_of("postcommit")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "repoze.sphinx.autointerface",
]
exclude_patterns = ["_build"]
default_role = "literal"
html_theme = "alabaster"
html_theme_options = {"description": "Mail that leaves with the commit"}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"

# What an exception says is part of the example.
doctest_default_flags = doctest.ELLIPSIS | doctest.DONT_ACCEPT_TRUE_FOR_1

# Each page stands for itself: its examples begin in an empty namespace, in a
# folder of their own.
doctest_global_setup = """
import logging, os, shutil, tempfile
logging.getLogger("postcommit").addHandler(logging.NullHandler())
folder = tempfile.mkdtemp()
os.chdir(folder)
"""
doctest_global_cleanup = """
os.chdir("/")
shutil.rmtree(folder)
"""
