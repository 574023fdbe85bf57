"""Sphinx configuration: sphinx-build -W -c docs . docs/_build

The source folder is the root of the repository, so that relative links work both on the site and in
the repository.
"""

import dataclasses
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent / "_ext"))
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import kbert
from kbert.fields import range_text

project = "kbert"
copyright = "the authors of kbert"
version = release = kbert.__version__
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/RESULTS.md"]
include_patterns += ["docs/**", "kbert/corpus/sample/README.md"]
exclude_patterns = ["docs/_*", ".*", "saved_model", "corpora", "models"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "programs"]
myst_heading_anchors = 3
myst_enable_extensions = ["html_image"]
nitpicky = True  # warn about broken references
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_typehints = "none"  # the docstrings have the types, with shapes
autodoc_inherit_docstrings = False  # not the docstrings of Keras' methods
default_role = "code"  # `name` in docstrings
smartquotes = False  # would turn -- of a flag into a dash
napoleon_custom_sections = [
    ("Call arguments", "params_style"),
    ("Returns, when called", "returns_style"),
]
napoleon_use_ivar = True
napoleon_use_rtype = False  # text before a colon is not a type
napoleon_attr_annotations = False  # the docstrings have the types of attributes, too

html_theme = "furo"
html_title = f"kbert {release}"
html_copy_source = False
html_show_sourcelink = False
templates_path = ["_templates"]
html_additional_pages = {"index": "to_start.html"}  # redirects to docs/index.html


def add_fields(app, kind, name, member, options, lines):
    """Documents the fields of a settings dataclass with the help texts of their flags."""
    if not dataclasses.is_dataclass(member):
        return
    for field in dataclasses.fields(member):
        if "help" not in field.metadata:  # not a dataclass of settings
            continue
        meaning = re.sub(r"([\\*_`|])", r"\\\1", field.metadata["help"])
        limits = range_text(field.metadata["limits"])
        lines.append(f":param {field.name}: {meaning}{limits and f' ({limits})'}")


def setup(app):
    app.connect("autodoc-process-docstring", add_fields, priority=900)  # after napoleon
