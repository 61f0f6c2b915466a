"""The English of the source and the pages can be read without reading twice."""
from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import prose


ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.rst")),
    *sorted(ROOT.glob("docs/**/*.rst")),
]
TEXTS = {
    "source": [
        text
        for path in sorted((ROOT / "src").rglob("*.py"))
        for text in prose.of_source(path)
    ],
    "pages": [text for path in PAGES for text in prose.of_page(path)],
}


@pytest.mark.parametrize("rule", prose.RULES)
@pytest.mark.parametrize("part", TEXTS)
def test_few_sentences_are_hard_to_read(part: str, rule: str) -> None:
    rate, sentences = prose.hard(rule, TEXTS[part])
    assert rate <= prose.RULES[rule][0], "\n".join(sentences)


@pytest.mark.parametrize("part", TEXTS)
def test_there_are_examples(part: str) -> None:
    texts = TEXTS[part]
    words = sum(len(text.split()) for text in texts)
    examples = sum(len(prose.EXAMPLES.findall(text)) for text in texts)
    assert 1000 * examples / words >= 0.7


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("a sentence begins with What, Who, Nor or That", "What it says is logged."),
        ("is no, has none", "It is no queue."),
        ("so many, so long", "After so many seconds, it ends."),
        ("nobody, somebody", "Nobody knows this, nor does somebody else."),
        ("one, ones as a pronoun", "Take the one that is due."),
        ("tell, hear, fare, see to", "The log tells why."),
        ("old-fashioned words", "It is opened anew."),
        ("semicolons", "It is open; it is read."),
    ],
)
def test_a_rule_finds_what_it_is_about(rule: str, sentence: str) -> None:
    rate, found = prose.hard(rule, ["It is open.", sentence])
    assert found == [sentence]
    assert rate > 1


def test_code_is_not_prose() -> None:
    assert prose.sentences("Call ``is no``. Then `so many` end.") == [
        "Call X.",
        "Then X end.",
    ]
