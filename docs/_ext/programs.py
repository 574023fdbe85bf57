"""The directive `programs`: every program of kbert with its flags, as the programs tell them."""

import ast
import pathlib
import re
import subprocess
import sys
from xml.etree import ElementTree

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = pathlib.Path(__file__).parent.parent.parent


def program_names():
    """Names of the modules that `python -m kbert.NAME` runs, sorted."""
    return sorted(
        path.stem for path in (ROOT / "kbert").glob("*.py") if "program.run(" in path.read_text()
    )


def summary(name):
    """The docstring of a program's module."""
    return ast.get_docstring(ast.parse((ROOT / "kbert" / f"{name}.py").read_text()))


def program_flags(name):
    """Flags of a program: tuples of name, what it takes, default (or "") and meaning."""
    told = subprocess.run(
        [sys.executable, "-m", f"kbert.{name}", "--helpxml"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout  # absl ends with status 1 after it has told
    flags = []
    for flag in ElementTree.fromstring(told).iter("flag"):
        if flag.findtext("key") != "yes":  # flags of absl itself
            continue
        values = [value.text for value in flag.iter("enum_value")]
        takes = ", ".join(values) or flag.findtext("type")
        meaning = re.sub(r"^<[^>]*>: ", "", flag.findtext("meaning"))  # an enum's values
        default = flag.findtext("default").removeprefix("None")
        flags.append((flag.findtext("name"), takes, default, meaning))
    return flags


def plain(text):
    """Text as Markdown that shows it as it is."""
    return re.sub(r"([\\`*_{}\[\]<>|$#])", r"\\\1", text)


def page():
    """Lines of MyST Markdown: a section for each program."""
    for name in program_names():
        yield from (f"## kbert.{name}", "", "```text", *summary(name).splitlines(), "```", "")
        yield from ("| flag | value | default | |", "| --- | --- | --- | --- |")
        for flag, takes, default, meaning in program_flags(name):
            default = f"`{default}`" if default else ""
            yield f"| `--{flag}` | {plain(takes)} | {default} | {plain(meaning)} |"
        yield ""


class Programs(SphinxDirective):
    """Puts `page()` where the directive stands."""

    def run(self):
        self.env.note_reread()  # the programs may have changed, though the page has not
        node = nodes.Element()
        self.state.nested_parse(
            StringList(list(page()), source="programs"), 0, node, match_titles=1
        )
        return node.children


def setup(app):
    app.add_directive("programs", Programs)
    return {"parallel_read_safe": True}
