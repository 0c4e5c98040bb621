"""Slugs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.domain.slugs import is_slug, slug_of


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("My Agent", "my-agent"),
        ("a@b", "ab"),
        ("  -- Two   words! -- ", "two-words"),
        ("Größe 10", "gre-10"),
        ("snake_case", "snakecase"),
        ("¡™£", ""),
        ("", ""),
    ],
)
def test_slugs_follow_the_rule_of_the_stigmer_server(name: str, slug: str) -> None:
    assert slug_of(name) == slug


@given(st.text())
def test_a_slug_is_empty_or_can_be_kept_and_is_its_own_slug(name: str) -> None:
    slug = slug_of(name)
    assert slug_of(slug) == slug
    assert not slug or is_slug(slug[:250].strip("-"))


@pytest.mark.parametrize("text", ["", "-a", "a-", "a b", "a/b", "a\n", "..", "ä", "a" * 251])
def test_what_is_no_slug(text: str) -> None:
    assert not is_slug(text)
