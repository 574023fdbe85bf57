"""Detects the encoding of text that is not UTF-8."""

import codecs
import re

BOM = codecs.BOM_UTF8
_WIDE_BOMS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # tested before UTF-16, whose mark is a prefix of this one
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_WIDE = ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE")
_ESCAPES = {rb"\x1b\$[@B]": "ISO-2022-JP", rb"\x1b\$\)C": "ISO-2022-KR"}
_NAMES = {
    "CP932": "Shift-JIS",
    "CP949": "EUC-KR",
    "CP1251": "Windows-1251 (cp1251, Cyrillic)",
    "CP1252": "Windows-1252 (cp1252, much like Latin-1)",
    "MACINTOSH": "Mac Roman",
}
_KOREAN = "이다는의에을를가고은한로하지도"  # a third of the syllables in Korean text are these
# For each encoding: a pattern of its common characters, the minimum fraction of non-ASCII
# characters that match it, and the allowed fraction of non-ASCII byte runs that are one byte long.
_MARKS = {
    "CP932": (rb"\x82[\x9f-\xf1]|\x83[\x40-\x96]", 0.2, (0, 1)),  # kana
    "EUC-JP": (rb"[\xa4\xa5][\xa1-\xf6]", 0.2, (0, 1)),  # kana
    "CP949": (b"|".join(map(re.escape, (c.encode("cp949") for c in _KOREAN))), 0.15, (0, 1)),
    "GB18030": (rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]", 0.6, (0, 0.4)),  # frequent hanzi, punctuation
    "BIG5": (rb"[\xa1-\xc6][\x40-\xfe]", 0.7, (0, 0.8)),
    "CP1251": (rb"[\xa8\xb8\xc0-\xff]", 0.8, (0, 0.4)),  # Cyrillic letters
    "CP1252": (
        rb"[\x80\x85\x8a\x8c\x91-\x97\x9a\x9c\xa0\xa3\xa7\xa9-\xab\xae\xb0\xb4\xbb\xbf-\xd1\xd6-\xff]",
        0.9,
        (0.5, 1),
    ),
    "MACINTOSH": (rb"[\x80-\x9f\xa5\xa7\xc7-\xc9\xd0-\xd5]", 0.9, (0.5, 1)),
}


def detect_wide_encoding(head: bytes) -> str | None:
    """Detects UTF-16 and UTF-32 from the first bytes of a text.

    Without a byte order mark, returns the encoding that gives the most ASCII characters and no
    control characters, provided that over one in 500 bytes is zero or, if the text is also UTF-8,
    one in five; any text may contain a few zeros.

    Returns:
        "UTF-16" or "UTF-32" with a byte order mark; "UTF-16LE", "UTF-16BE", "UTF-32LE" or
        "UTF-32BE" without; None for other text.
    """
    for mark, name in _WIDE_BOMS.items():
        if head.startswith(mark):
            return name
    rarest = 5 if _decode(head, "UTF-8") is not None else 500
    best, most = None, 0
    for name in _WIDE if head.count(b"\0") * rarest > len(head) else ():
        text = _decode(head, name)
        if text is None or re.search(r"[\0-\x08\x0e-\x1f\x7f-\x9f\ufffe\uffff]", text):
            continue
        ascii_count = sum(char < "\x80" for char in text)
        if ascii_count > most:
            best, most = name, ascii_count
    return best


def detect_iso_2022_encoding(head: bytes) -> str | None:
    """Returns "ISO-2022-JP" or "ISO-2022-KR" for ASCII text with its escape sequence, else None."""
    if not head.isascii():
        return None
    return next((name for escape, name in _ESCAPES.items() if re.search(escape, head)), None)


def guess_encoding(data: bytes) -> str | None:
    """Guesses the encoding of lines that are not UTF-8; returns its iconv name, or None."""
    runs = re.findall(rb"[\x80-\xff]+", data)
    one_byte_runs = sum(len(run) == 1 for run in runs) / max(1, len(runs))
    for name, (common, min_matches, (lowest, highest)) in _MARKS.items():
        text = _decode(data, name) if lowest <= one_byte_runs <= highest else None
        chars = [char for char in text or "" if char > "\x7f"]
        matches = sum(re.fullmatch(common, char.encode(name)) is not None for char in chars)
        if chars and matches >= min_matches * len(chars):
            return name
    return None


def readable_name(encoding: str) -> str:
    """Returns the usual name of an encoding, given its name in iconv."""
    return _NAMES.get(encoding, encoding)


def is_utf8(data: bytes, complete: bool = True) -> bool:
    """Returns whether bytes are UTF-8; if not `complete`, the last character may be incomplete."""
    try:
        codecs.utf_8_decode(data, "strict", complete)
    except UnicodeDecodeError:
        return False
    return True


def _decode(data, encoding):
    """Decodes bytes, of which the last character may be incomplete; returns None if invalid."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError:
        return None
