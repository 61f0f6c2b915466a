"""Configuration of Sphinx; warnings are errors, see ``tox -e docs``."""
from __future__ import annotations

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

# Each page stands for itself: its examples begin in an empty namespace, in a
# folder of their own.
doctest_global_setup = """
import os, shutil, tempfile
folder = tempfile.mkdtemp()
os.chdir(folder)
"""
doctest_global_cleanup = """
os.chdir("/")
shutil.rmtree(folder)
"""
