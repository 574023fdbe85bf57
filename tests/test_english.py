"""Habits of style that kbert's English has lost: each may occur only a few times.

Counted in the pages, and in the docstrings, comments and messages of the package. The patterns
also match a few sentences that are fine, hence the limits.
"""

import ast
import io
import re
import tokenize

import pytest
from pages import ENGLISH, OTHERS, ROOT, prose

# pattern -> (most in the package, most in the pages, what to write instead)
HABITS = {
    r"what (?:is|was|are|were|has|have|had|it|they)": (3, 5, "a noun"),
    r"(?:that|those) of": (7, 4, "the noun again, or a possessive"),
    r"tells?|told|telling": (1, 1, "reports, prints, returns, specifies"),
    r"(?:go|goes|going|went) on": (1, 1, "resumes, continues"),
    r"refus(?:e|es|ed|al|ing)": (1, 1, "rejects, raises an error"),
    r"(?:is|are|was|were|be|been) left out": (1, 1, "omitted, skipped"),
    r"mend(?:s|ed|ing)?": (1, 1, "fix"),
    r"said": (1, 1, "the name of the message, the log or the response"),
    r"says? (?:which|that|so)": (1, 1, "the verb of the field"),
    r"sought|anew|alike|to be had|no accident": (1, 1, "a plain word"),
    r"nothing but|nobody": (2, 1, "only; no user"),
    r"so many": (1, 1, "the number, or 'this many'"),
}


def python_texts(source):
    """Yields docstrings, comments and string constants with spaces, of a Python file."""
    parts = set()  # of f-strings, which are one text each
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts.update(node.values)
            yield "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            yield node.value
    block, last = [], 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                yield " ".join(block)
                block = []
            block.append(token.string.lstrip("# "))
            last = token.start[0]
    yield " ".join(block)


def package_texts():
    """Yields (file, text) of the package; a text is a docstring, a comment or a message."""
    for folder in ("kbert", "export"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for text in python_texts(path.read_text(encoding="utf-8")):
                if " " in text.strip():
                    yield path.relative_to(ROOT), " ".join(text.split())
    for path in sorted((ROOT / "configs").iterdir()):
        yield path.relative_to(ROOT), " ".join(path.read_text(encoding="utf-8").split())


def page_texts():
    """Yields (file, text) of the English pages, without blocks of code."""
    for page in [*ENGLISH, *OTHERS]:
        yield page.relative_to(ROOT), " ".join(prose(page).split())


@pytest.fixture(scope="module")
def texts():
    return [list(package_texts()), list(page_texts())]


@pytest.mark.parametrize("habit", HABITS)
def test_habits_stay_rare(habit, texts):
    *limits, instead = HABITS[habit]
    pattern = re.compile(rf"\b(?:{habit})\b", re.IGNORECASE)
    for place, limit in zip(texts, limits, strict=True):
        seen = [
            f"{file}: ...{text[max(m.start() - 40, 0) : m.end() + 40]}..."
            for file, text in place
            for m in pattern.finditer(text)
        ]
        assert len(seen) <= limit, f"write {instead}:\n" + "\n".join(seen)
