"""The documentation: links, the Chinese pages beside the English ones, the site."""

import dataclasses
import functools
import html.parser
import importlib
import importlib.util
import re
import shlex
import subprocess

import pytest
from pages import (
    CHINESE,
    ENGLISH,
    OTHERS,
    ROOT,
    RUN,
    SHOWN,
    anchors,
    blocks,
    commands,
    headings,
    links,
    name,
    prose,
)
from warm_python import PYTHON

import kbert
from kbert import settings
from kbert.settings.serving import ServeConfig

PAGES = [*ENGLISH, *CHINESE]


def of(pages):
    return pytest.mark.parametrize("page", pages, ids=name)


@of([*PAGES, *OTHERS])
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@of(PAGES)
def test_code_is_in_blocks_that_say_what_they_are(page):
    """So that none escapes the tests that run them."""
    assert {block.language for block in blocks(page)} <= {*RUN, *SHOWN}
    assert not re.search(r"\n\n {4,}\S", prose(page)), "a block without a fence"


@functools.cache
def flags_of(module):
    told = subprocess.run(
        [PYTHON, "-m", module, "--helpfull"], capture_output=True, text=True
    ).stdout
    return {"flagfile", *re.findall(r"^  --(?:\[no\])?(\w+):", told, re.MULTILINE)}


@of(ENGLISH)
def test_commands_name_files_and_flags_that_exist(page):
    lines = [line for b in blocks(page) if b.language == "sh" for line in commands(b)]
    for line in lines:
        for module, rest in re.findall(r"python -m (kbert\.\w+)([^|&;]*)", line):
            for flag in re.findall(r" --(\w+)", rest):
                assert flag in flags_of(module) or flag.removeprefix("no") in flags_of(module)
        for path in re.findall(r"=(configs/\S+)", line):
            assert (ROOT / path).exists(), path


def test_ci_runs_the_commands_of_the_readme():
    lines = [line for b in blocks(ROOT / "README.md") for line in commands(b)]
    (tests,) = [line for line in lines if "pytest" in line]
    ci = (ROOT / ".ci/run").read_text().splitlines()
    for command in tests.split(" && "):
        assert command in ci


# Chinese


def original(page):
    return (ROOT if page.name == "README.md" else ROOT / "docs") / page.name


def test_what_is_translated():
    names = {page.name for page in CHINESE}
    assert names == {"README.md", *(p.name for p in (ROOT / "docs").glob("guide_*.md"))}


@of(CHINESE)
def test_a_translation_has_the_code_and_the_outline_of_its_page(page):
    english = original(page)
    assert [level for level, _ in headings(page)] == [level for level, _ in headings(english)]
    ours, theirs = (
        [(b.language, commands(b) if b.language in RUN else b.text) for b in blocks(p)]
        for p in (page, english)
    )
    assert ours == theirs
    assert prose(page).count("\n| ") == prose(english).count("\n| ")


@of(CHINESE)
def test_a_translation_and_its_page_lead_to_each_other(page):
    english = original(page)
    assert (page.parent / links(page)[0]).resolve() == english
    assert (english.parent / links(english)[0]).resolve() == page


@of(CHINESE)
def test_a_translation_has_the_figures_of_its_page(page):
    """Numbers with a decimal point, wherever they stand, and names of files, flags and code."""
    for pattern in (r"(?<![\w.])\d+\.\d+(?!\w|\.\d)", r"`[^`]+`"):
        ours, theirs = (
            sorted(" ".join(found.split()) for found in re.findall(pattern, prose(p)))
            for p in (page, original(page))
        )
        assert ours == theirs


# The site

GENERATOR = ("sphinx", "myst_parser", "furo")
MISSING = [module for module in GENERATOR if importlib.util.find_spec(module) is None]


class Loaded(html.parser.HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.found.append(attrs.get("src") or "")
        elif tag == "link" and attrs.get("rel") != "canonical":
            self.found.append(attrs.get("href") or "")


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install -e '.[docs]'")
def test_the_site_is_made_without_a_warning(tmp_path):
    """By the command of docs/testing.md; any link between pages that leads nowhere is a warning."""
    lines = [line for b in blocks(ROOT / "docs/testing.md") for line in commands(b)]
    (command,) = [line.split(" && ")[-1] for line in lines if "sphinx-build" in line]
    program, *arguments = shlex.split(command)
    assert program == "sphinx-build" and "-W" in arguments
    arguments[-1] = str(tmp_path)
    done = subprocess.run(
        [PYTHON, "-m", "sphinx", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert made >= {name(page).replace(".md", ".html") for page in [*PAGES, *OTHERS]}
    for page in tmp_path.rglob("*.html"):
        outside = [target for target in Loaded(page).found if re.match(r"(https?:)?//", target)]
        assert not outside, page
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", sheet.read_text()), sheet
    api = (tmp_path / "docs/api.html").read_text()
    public = {f"kbert.{name}" for name, home in kbert._MODULES.items() if home}
    for module in ("kbert.data", "kbert.train"):
        public |= {f"{module}.{name}" for name in importlib.import_module(module).__all__}
    shown = set(re.findall(r'id="(kbert[\w.]+)"', api))
    assert shown >= public - {"kbert.tokenizer.BertTokenizer"}  # which is kbert.BertTokenizer
    programs = (tmp_path / "docs/programs.html").read_text()
    configs = [c for c in vars(settings).values() if dataclasses.is_dataclass(c)]
    flags = {
        field.name for config in [*configs, ServeConfig] for field in dataclasses.fields(config)
    }
    assert set(re.findall(r"--(\w+)", programs)) >= {*flags, "dry_run", "allow_missing", "layer"}
    assert "fraction of the tokens to predict (&gt; 0 and &lt; 1)" in programs
