"""Sentences of the source and the pages, and how many of them are hard to read.

A rate is a number for each 1,000 words. A limit is what well-written libraries of this
field stay below. A sentence may break a rule for a good reason, so there are limits,
not forbidden words.
"""
from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path


# Each rule with its limit.
RULES = {
    "a sentence begins with What, Who, Nor or That": (
        0.5,
        r"^(?:What|Who(?:ever|m|se)?|Whatever|Of (?:what|whom|which)|Nor|That|Else)\b"
        r"(?! (?:is|are|was|were|do|does|did|if|about|means?)\b)(?=[^?]*$)",
    ),
    "is no, has none": (
        0.6,
        r"\b(?:is|are|was|were|has|have|had) (?:no|none)\b(?! longer)",
    ),
    "so many, so long": (
        0.2,
        r"\b[Ss]o (?:many|much|often|long|few|large|old)\b(?! as)",
    ),
    "nobody, somebody": (0.5, r"\b(?:no|some|any|every)body\b|\b[Ww]hoever\b"),
    "one, ones as a pronoun": (
        1.5,
        r"\bones?\b(?=[,.;:)]|$| (?:that|which|who|whose|is|was|has|had|are|were|with"
        r"|for|in|to|from|by|at|on|as|after|before|where|when|may|can|must|will|would|does|do"
        r"|did|he|it|we|they)\b)",
    ),
    "tell, hear, fare, see to": (
        0.5,
        r"\b(?:tells?|told|hears?|heard|fares?|fared|sees? to)\b",
    ),
    "old-fashioned words": (
        0.2,
        r"\b(?:hence|in vain|meanwhile|reckon|anew|for ever|whence|thereby|lest)\b"
        r"|, for (?:it|they|we|the|a|what|else)\b",
    ),
    "semicolons": (3.2, r";"),
}

# What there should be more of.
EXAMPLES = re.compile(r"\b(?:e\.g\.|for example|for instance|such as)", re.IGNORECASE)

_CODE = re.compile(
    r"\s*(?:>>>|\.\.\. |\.\. "
    r"(?:code-block|testcode|testsetup|testcleanup|literalinclude))"
)


def of_source(path: Path) -> Iterator[str]:
    """Yield the docstrings and blocks of comments of a module."""
    source = path.read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""
    block: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            block.append(token.string.lstrip("#: "))
        elif token.type != tokenize.NL and block:
            yield " ".join(block)
            block = []


def of_page(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a page, without its examples."""
    block: list[str] = []
    in_code = False
    for line in [*path.read_text().splitlines(), ""]:
        if _CODE.match(line):
            in_code = line.lstrip().startswith("..")
        elif not (in_code and (line.startswith("   ") or not line)):
            in_code = False
            if line.strip():
                block.append(line.strip(" *-"))
            elif block:
                yield " ".join(block)
                block = []


def sentences(text: str) -> list[str]:
    """Return the sentences of `text`, with an X for each piece of code."""
    text = re.sub(r"``[^`]*``|`[^`]*`", "X", text)
    text = re.sub(r"\s+", " ", text).strip()
    return [part for part in re.split(r"(?<=[.!?:]) (?=[A-Z\"'(])", text) if part]


def hard(rule: str, texts: list[str]) -> tuple[float, list[str]]:
    """Return the rate of `rule`, and the sentences that break it."""
    words = found = 0
    broken = []
    for text in texts:
        for sentence in sentences(text):
            words += len(sentence.split())
            hits = len(re.findall(RULES[rule][1], sentence))
            found += hits
            broken += [sentence] * bool(hits)
    return 1000 * found / words, broken
