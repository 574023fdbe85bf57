"""Entity tagging schemes: IOB1, IOB2, BIOES, BILOU, BMES, and plain types with O for other words.

Training, metrics and predictions share this implementation. A scheme gives each tag a role and a
type. The roles are: B begins an entity, I continues it, E ends it, S is an entity of one word, O is
no entity.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TypeAlias

    from kbert.data.examples import TagExample

    Span: TypeAlias = tuple[str, int, int]  # type, begin, end of tags[begin:end]

_OUTSIDE = ("O", "")
_UNTYPED = "_"  # the type of bare tags, B, I and O, as in seqeval
_ROLES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}
_LETTERS = f"[{''.join(_ROLES)}{''.join(_ROLES).lower()}]"
_TAG_PATTERNS = (
    re.compile(rf"(?P<letter>{_LETTERS})(?P<separator>[-_:./|])(?P<type>.+)"),  # B-PER, b_per
    re.compile(rf"(?P<type>.+)(?P<separator>[-_:./|])(?P<letter>{_LETTERS})"),  # PER-B
    re.compile(rf"(?P<letter>{_LETTERS})(?P<separator>)(?P<type>)"),  # B
)
_BRACKETS = re.compile(r"(\((?P<type>[^()*]+))?\*?(?P<end>\))?")
_IOB2_TAG = re.compile(r"([BI])-(.+)")
# Labels that some models give to special tokens. (X, for later pieces of a word, is handled below.)
_SPECIAL = re.compile(r"\[(CLS|SEP|PAD|UNK)\]|<\w+>|PAD")
_MAX_LETTERS = 5  # with more tags of one letter, all tags are parts of speech, even O


@dataclasses.dataclass(frozen=True)
class TagScheme:
    """The meaning of a set of tags that mark entities.

    Attributes:
        name: name in messages, such as "IOB2".
        roles: dict of tag -> (role, type); other tags mark no entities.
        outside: the tag of words outside entities.
    """

    name: str
    roles: Mapping[str, tuple[str, str]]
    outside: str = "O"

    def spans(self, tags: Sequence[str]) -> "list[Span]":
        """Returns the entities of one text, in order, as tuples (type, begin, end).

        As in conlleval and seqeval's default mode, an I or E that does not follow a word of an open
        entity of its type begins an entity.

        Source: `conlleval` of the CoNLL-2000 shared task, `startOfChunk` and `endOfChunk`.
        """
        spans, before = [], "O"
        for place, tag in enumerate(tags):
            role, type = self.roles.get(tag, _OUTSIDE)
            if role != "O":
                continues = role in "IE" and before in "BI" and spans[-1][0] == type
                begin = spans.pop()[1] if continues else place
                spans.append((type, begin, place + 1))
            before = role
        return spans

    def strict_spans(self, tags: Sequence[str]) -> "list[Span]":
        """Returns only the entities whose tags follow the scheme, like seqeval's strict mode.

        The tags of an entity must be B I* in IOB2, and B I* E or S in BIOES, BILOU and BMES.
        Schemes without B are not checked.
        """
        roles = {role for role, _ in self.roles.values()}
        if "B" not in roles:
            return self.spans(tags)
        closed = bool(roles & {"E", "S"})

        def is_valid(begin, end):
            first, last = (self.roles[tags[place]][0] for place in (begin, end - 1))
            return first == "S" or (first == "B" and (last == "E" or not closed))

        return [span for span in self.spans(tags) if is_valid(*span[1:])]

    def write(self, spans: "Iterable[Span]", length: int) -> tuple[str, ...]:
        """Returns the tags of a text with the given entities, which must not overlap.

        If the scheme has no tag for a role and type, the word gets a tag of a similar role or, if
        there is none, of IOB2.
        """
        names = {meaning: tag for tag, meaning in reversed(self.roles.items())}
        tags = [self.outside] * length
        for type, begin, end in spans:
            roles = ["S"] if end == begin + 1 else ["B", *"I" * (end - begin - 2), "E"]
            for place, role in enumerate(roles, begin):
                others = {"S": "SBIE", "B": "BI", "I": "I", "E": "EI"}[role]
                possible = (names[r, type] for r in others if (r, type) in names)
                tags[place] = next(possible, _iob2("B" if place == begin else "I", type))
        return tuple(tags)

    def split(self, tag: str, parts: int) -> list[str]:
        """Returns the tags for the parts of a word that has this tag and is split into `parts`."""
        role, type = self.roles.get(tag, _OUTSIDE)
        if parts < 2 or role == "O":
            return [tag] * parts
        names = {meaning: name for name, meaning in reversed(self.roles.items())}
        roles = ["B" if role in "BS" else "I", *"I" * (parts - 2), "E" if role in "ES" else "I"]
        return [names.get((r, type), tag) for r in roles]


def tag_scheme(tags: Iterable[str]) -> TagScheme | None:
    """Returns the scheme of tags, or None if they mark no entities, like parts of speech."""
    tags = sorted(set(tags))
    outside = next((tag for tag in "Oo" if tag in tags), None)
    marks = [tag for tag in tags if tag != outside and not _SPECIAL.fullmatch(tag)]
    for form in _TAG_PATTERNS:
        if scheme := _scheme_of_roles(marks, form, outside):
            return scheme
    return _scheme_of_types(tags, marks, outside)


def _scheme_of_types(tags, marks, outside):
    """Returns the TagScheme of plain types, alone or mixed with B-X and I-X, or None."""
    usual = {tag: match for tag in marks if (match := _IOB2_TAG.fullmatch(tag))}
    others = [tag for tag in marks if tag not in usual and not (usual and tag == "X")]
    roles = {tag: (match[1], match[2]) for tag, match in usual.items()}
    if outside is None:
        is_entities = any(role == "B" for role, _ in roles.values())
        return TagScheme("IOB2", roles, [*others, tags[0]][0]) if is_entities else None
    if sum(len(tag) == 1 for tag in marks) > _MAX_LETTERS:
        return None
    name = "IOB2" if usual or not others else f"plain types with {outside}"
    return TagScheme(name, roles | {tag: ("I", tag) for tag in others}, outside)


def _scheme_of_roles(tags, form, outside):
    """Returns the TagScheme if all tags consist of a role letter and a type, else None."""
    matches = {tag: form.fullmatch(tag) for tag in tags if tag != "X" or len(tags) == 1}
    if not matches or None in matches.values():
        return None
    letters = {match["letter"] for match in matches.values()}
    roles = {_ROLES[letter.upper()] for letter in letters}
    if len({match["separator"] for match in matches.values()}) > 1 or not (
        all(map(str.isupper, letters)) or all(map(str.islower, letters))
    ):
        return None
    is_prefix = form is _TAG_PATTERNS[0]
    evidence = {"B", "I"} <= roles if not is_prefix else bool(roles & {"B", "I"})
    evidence |= {"B", "E"} <= roles or (is_prefix and outside is not None and roles == {"S"})
    if not evidence:  # E-MAIL, for example, is not the tag of an entity MAIL
        return None
    meanings = {
        tag: (_ROLES[match["letter"].upper()], match["type"] or _UNTYPED)
        for tag, match in matches.items()
    }
    return TagScheme(_scheme_name("".join(letters).upper()), meanings, outside or "O")


def _scheme_name(letters):
    if "M" in letters:
        return "BMES"
    if "L" in letters or "U" in letters:
        return "BILOU"
    return "BIOES" if set(letters) & set("ESW") else "IOB2"


def to_iob2(rows: Sequence[Sequence[str]]) -> tuple[list[tuple[str, ...]], TagScheme | None]:
    """Converts the tags of a file to IOB2, also from the brackets of CoNLL-2012.

    Parts of speech and plain types are unchanged.

    Args:
        rows: tags of all sentences of a file, which together determine the scheme.

    Returns:
        The converted tags of each sentence, and the original scheme; None for parts of speech.
    """
    rows = [tuple(tags) for tags in rows]
    distinct = {tag for tags in rows for tag in tags}
    if any("(" in tag for tag in distinct) and all(map(_BRACKETS.fullmatch, distinct)):
        rows = [tuple(_brackets_to_iob2(tags)) for tags in rows]
        distinct = {tag for tags in rows for tag in tags}
    scheme = tag_scheme(distinct)
    if scheme is None or scheme.name.startswith("plain"):
        return rows, scheme
    if scheme.name == "IOB2" and not _is_iob1(rows, scheme):  # keep errors for strict metrics
        new = {scheme.outside: "O"} if scheme.outside == "o" else {}
        for tag, (role, type) in scheme.roles.items():
            new[tag] = tag if tag == type else _iob2(role, type)
        return [tuple(new.get(tag, tag) for tag in tags) for tags in rows], scheme
    if scheme.name == "IOB2":
        scheme = dataclasses.replace(scheme, name="IOB1")
    iob2 = {}
    for _, type in sorted(scheme.roles.values()):
        iob2 |= {_iob2("B", type): ("B", type), _iob2("I", type): ("I", type)}
    writer = TagScheme("IOB2", iob2)
    return [writer.write(scheme.spans(tags), len(tags)) for tags in rows], scheme


def _brackets_to_iob2(tags):
    """Yields the IOB2 tags for the brackets of CoNLL-2012, such as (PERSON* *) * (ORG)."""
    inside = None
    for match in map(_BRACKETS.fullmatch, tags):
        inside = match["type"] or inside
        yield f"{'B' if match['type'] else 'I'}-{inside}" if inside else "O"
        inside = None if match["end"] else inside


def _is_iob1(rows, scheme):
    """Returns whether tags are IOB1, and not IOB2.

    In IOB1, an entity begins with I, or with B if it directly follows an entity of the same type.
    """
    begins_with_i = False
    for tags in rows:
        spans = scheme.spans(tags)
        for before, (type, begin, _) in zip([("", 0, -1), *spans], spans, strict=False):
            if scheme.roles[tags[begin]][0] == "I":
                begins_with_i = True
            elif before[0] != type or before[2] != begin:
                return False
    return begins_with_i


def _iob2(role, type):
    return role if type == _UNTYPED else f"{role}-{type}"


def convert_tags(names: Sequence[str], examples: "Sequence[TagExample]") -> "list[TagExample]":
    """Converts the tags of examples to the label names and tagging scheme of a model.

    Label ids become names. Tags in another scheme, or with types in another case, are rewritten.
    """
    rows = [example.tags for example in examples]
    if not any(name.isdecimal() for name in names):
        numbers = {str(number): name for number, name in enumerate(names)}
        rows = [tuple(numbers.get(tag, tag) for tag in tags) for tags in rows]
    tags = {tag for row in rows for tag in row}
    own, scheme = tag_scheme(tags), tag_scheme(names)
    if own and scheme and (own.name != scheme.name or not tags <= set(names)):
        types = {type.lower(): type for _, type in scheme.roles.values()}
        types |= {type: type for type in types.values()}

        def convert_row(row):
            spans = (
                (types.get(type, types.get(type.lower(), type)), begin, end)
                for type, begin, end in own.spans(row)
            )
            return scheme.write(spans, len(row))

        rows = [convert_row(row) for row in rows]
    pairs = zip(examples, rows, strict=True)
    return [dataclasses.replace(example, tags=row) for example, row in pairs]
