#!/usr/bin/env python3
"""Print words, sentences, syllables and reading ease (Flesch) of an English text as JSON."""

import json
import pathlib
import re
import sys


def syllables(word):
    """A count of vowel groups; a silent e at the end does not count."""
    groups = re.findall(r"[aeiouy]+", word.lower())
    silent = word.lower().endswith("e") and not word.lower().endswith("le") and len(groups) > 1
    return max(len(groups) - silent, 1)


def statistics(text):
    words = re.findall(r"[A-Za-z']+", text)
    sentences = len(re.findall(r"[.!?]+(?=\s|$)", text)) or (1 if words else 0)
    count = sum(map(syllables, words))
    ease = 206.835 - 1.015 * len(words) / sentences - 84.6 * count / len(words) if words else None
    return {
        "words": len(words),
        "sentences": sentences,
        "syllables": count,
        "reading_ease": None if ease is None else round(ease, 1),
    }


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: statistics.py FILE")
    text = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8")
    sys.stdout.write(json.dumps(statistics(text)) + "\n")


if __name__ == "__main__":
    main()
