"""The pages of the documentation, taken apart: blocks of code, headings, links."""

import collections
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
ENGLISH = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CHINESE = sorted((ROOT / "docs/zh").glob("*.md"))
OTHERS = [
    ROOT / "CHANGELOG.md",
    ROOT / "benchmarks/RESULTS.md",
]  # on the site, too
# What is run by a reader, what is only shown, and directives of the site.
RUN = ("sh", "python")
SHOWN = ("text", "dockerfile", "{toctree}", "{programs}", "{eval-rst}")

Block = collections.namedtuple("Block", "language text line")


def name(page):
    """A page as it is called in tests: docs/zh/README.md."""
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    """Blocks of code of a page, in their order; `line` is that of the opening fence, from 1."""
    found, opened = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), 1):
        if opened is None and line.startswith("```"):
            opened, inside = (line[3:].split(" ")[0], number), []
        elif opened is not None and line == "```":
            found.append(Block(opened[0], "\n".join(inside) + "\n", opened[1]))
            opened = None
        elif opened is not None:
            inside.append(line)
    assert opened is None, f"{name(page)}, line {opened[1]}: the block has no end"
    return found


def prose(page):
    """A page without its blocks of code."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def headings(page):
    """Tuples of level and text."""
    return [(len(m[1]), m[2]) for m in re.finditer(r"^(#+) (.+)$", prose(page), re.MULTILINE)]


def anchors(page):
    """What a link may have after # to lead to a heading, as GitHub makes it."""
    plain = (re.sub(r"[`*]|\]\([^)]*\)", "", text) for _, text in headings(page))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in plain}


def links(page):
    """Targets of a page's links that are no addresses of the web."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"https?:", target)]


def commands(block):
    """The text of a block of commands without comments, lines that go on in the next joined."""
    text = re.sub(r"(^|\s)#.*", r"\1", block.text.replace("\\\n", " "), flags=re.MULTILINE)
    return [line.strip() for line in text.split("\n") if line.strip()]
