"""The directive `programs`: the programs of kbert with their flags, from --helpxml."""

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
    """Returns the sorted names of the programs."""
    return sorted(
        path.stem for path in (ROOT / "kbert").glob("*.py") if "program.run(" in path.read_text()
    )


def summary(name):
    """Returns the docstring of a program's module."""
    return ast.get_docstring(ast.parse((ROOT / "kbert" / f"{name}.py").read_text()))


def program_flags(name):
    """Returns a program's flags as tuples of name, type or values, default (or ""), and help."""
    output = subprocess.run(
        [sys.executable, "-m", f"kbert.{name}", "--helpxml"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout  # absl exits with status 1 after printing it
    flags = []
    for flag in ElementTree.fromstring(output).iter("flag"):
        if flag.findtext("key") != "yes":  # absl's own flags
            continue
        values = [value.text for value in flag.iter("enum_value")]
        takes = ", ".join(values) or flag.findtext("type")
        meaning = re.sub(r"^<[^>]*>: ", "", flag.findtext("meaning"))  # an enum's values
        default = flag.findtext("default").removeprefix("None")
        flags.append((flag.findtext("name"), takes, default, meaning))
    return flags


def plain(text):
    """Escapes text for Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>|$#])", r"\\\1", text)


def page():
    """Yields lines of MyST Markdown, with a section for each program."""
    for name in program_names():
        yield from (f"## kbert.{name}", "", "```text", *summary(name).splitlines(), "```", "")
        yield from ("| flag | value | default | |", "| --- | --- | --- | --- |")
        for flag, takes, default, meaning in program_flags(name):
            default = f"`{default}`" if default else ""
            yield f"| `--{flag}` | {plain(takes)} | {default} | {plain(meaning)} |"
        yield ""


class Programs(SphinxDirective):
    """Replaces the directive by `page()`."""

    def run(self):
        self.env.note_reread()  # the programs may have changed even if the page has not
        node = nodes.Element()
        self.state.nested_parse(
            StringList(list(page()), source="programs"), 0, node, match_titles=1
        )
        return node.children


def setup(app):
    app.add_directive("programs", Programs)
    return {"parallel_read_safe": True}
