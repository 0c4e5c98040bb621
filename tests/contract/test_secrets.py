"""What every secret box keeps, and how keys are read."""

from __future__ import annotations

import base64
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runner.adapters.secrets.key_files import NAME, open_keyring
from agent_runner.adapters.secrets.keyring import Keyring, new_key
from agent_runner.errors import SecretUnreadableError, SettingsError
from agent_runner.ports.secrets import SecretBox, SecretPlace

PLACE = SecretPlace("acme", "environment", "env-1", "spec.data.TOKEN")
BOX: SecretBox = Keyring.parse(f"k1:{new_key()}")


@given(st.text())
def test_what_was_sealed_opens_in_its_place(value: str) -> None:
    assert BOX.open(BOX.seal(value, PLACE), PLACE) == value


def test_a_megabyte_opens_again() -> None:
    assert BOX.open(BOX.seal("x" * (1 << 20), PLACE), PLACE) == "x" * (1 << 20)


def test_a_sealed_value_shows_neither_the_secret_nor_that_two_are_equal() -> None:
    first, second = BOX.seal("topsecret", PLACE), BOX.seal("topsecret", PLACE)

    assert first != second
    assert first.startswith("v1.k1.")
    assert "topsecret" not in first
    assert b"topsecret" not in base64.urlsafe_b64decode(first.split(".")[2] + "==")


# Keys that are the same in every run, for the names of tests.
ONES, TWOS = (base64.b64encode(byte * 32).decode() for byte in (b"1", b"2"))


@pytest.mark.parametrize("field", ["org", "kind", "id", "name"])
def test_a_value_does_not_open_in_another_place(field: str) -> None:
    sealed = BOX.seal("topsecret", PLACE)

    with pytest.raises(SecretUnreadableError, match="altered, moved") as caught:
        BOX.open(sealed, replace(PLACE, **{field: "other"}))
    assert "topsecret" not in str(caught.value)


def test_places_are_told_apart_wherever_their_parts_end() -> None:
    sealed = BOX.seal("s", SecretPlace("a", "bc", "d", "e"))

    with pytest.raises(SecretUnreadableError):
        BOX.open(sealed, SecretPlace("ab", "c", "d", "e"))


@pytest.mark.parametrize(
    "spoil",
    [lambda s: s[:-9] + ("B" if s[-9] == "A" else "A") + s[-8:], lambda s: s[:12], lambda s: s[:-1] + "%"],
)
def test_an_altered_value_does_not_open(spoil: object) -> None:
    assert callable(spoil)
    with pytest.raises(SecretUnreadableError):
        BOX.open(spoil(BOX.seal("topsecret", PLACE)), PLACE)


def test_what_was_never_sealed_does_not_open() -> None:
    with pytest.raises(SecretUnreadableError, match="not encrypted as expected"):
        BOX.open("topsecret", PLACE)
    assert BOX.key_id("topsecret") == ""
    assert BOX.key_id("v1.not a key.x") == ""


def test_the_first_key_seals_and_every_key_opens() -> None:
    old, new = new_key(), new_key()
    sealed = Keyring.parse(f"k1:{old}").seal("topsecret", PLACE)
    ring = Keyring.parse(f"k2:{new},k1:{old}")

    assert ring.open(sealed, PLACE) == "topsecret"
    assert ring.key_id(ring.seal("x", PLACE)) == ring.current_key_id == "k2"


def test_a_missing_key_is_named() -> None:
    sealed = Keyring.parse(f"k1:{new_key()}").seal("topsecret", PLACE)

    with pytest.raises(SecretUnreadableError, match="key 'k1', which is not in the keyring"):
        Keyring.parse(f"k2:{new_key()}").open(sealed, PLACE)


def test_keys_in_the_alphabet_for_addresses_and_without_padding_are_read() -> None:
    key = base64.urlsafe_b64encode(b"\xff" * 32).decode().rstrip("=")

    assert Keyring.parse(f" k1:{key} \n# a note\n").current_key_id == "k1"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no key"),
        ("nokey", "entry 1 must be ID:BASE64"),
        ("k1:%%%%", "entry 1 is not base64"),
        ("k1:c2hvcnQ=", "has 5 bytes, not 32"),
        (f"a b:{ONES}", "up to 32 letters"),
        (f"k1:{ONES},k1:{TWOS}", "entry 2 repeats"),
    ],
)
def test_wrong_keys_are_told_without_repeating_them(text: str, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as caught:
        Keyring.parse(text)
    assert text == "" or text.partition(":")[2] == "" or text.partition(":")[2] not in str(caught.value)


def test_the_first_start_makes_a_key_only_its_user_can_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sealed = open_keyring(None, tmp_path / "data").seal("topsecret", PLACE)
    path = tmp_path / "data" / NAME

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert str(path) in "".join(capsys.readouterr())
    assert [file.name for file in path.parent.iterdir()] == [NAME]
    assert open_keyring(None, tmp_path / "other").current_key_id not in sealed
    assert open_keyring(None, tmp_path / "data").open(sealed, PLACE) == "topsecret"


def test_the_setting_wins_over_the_file(tmp_path: Path) -> None:
    assert open_keyring(f"k9:{new_key()}", tmp_path).current_key_id == "k9"
    assert not list(tmp_path.iterdir())


def test_a_key_file_open_to_others_is_refused(tmp_path: Path) -> None:
    open_keyring(None, tmp_path)
    (tmp_path / NAME).chmod(0o640)

    with pytest.raises(SettingsError, match="chmod 600"):
        open_keyring(None, tmp_path)
