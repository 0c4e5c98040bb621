from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent_runner.errors import SettingsError
from agent_runner.settings import PREFIX, Settings, known_variables, load

REFERENCE = Path(__file__).parents[2] / "docs" / "reference" / "settings.md"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in known_variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.chdir(tmp_path)


def test_flags_win_over_environment_over_project_file_over_user_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    user = tmp_path / ".config" / "agent-runner" / "config.toml"
    user.parent.mkdir(parents=True)
    user.write_text('model = "user"\norg = "user"\nlisten = "127.0.0.1:1"\nconcurrency = 1\n')
    (tmp_path / "agent-runner.toml").write_text(
        'model = "project"\norg = "project"\nlisten = "127.0.0.1:2"\n'
    )
    monkeypatch.setenv("AGENT_RUNNER_MODEL", "environment")
    monkeypatch.setenv("AGENT_RUNNER_ORG", "environment")

    settings = load(model="flag")

    assert (settings.model, settings.org, settings.listen, settings.concurrency) == (
        "flag",
        "environment",
        "127.0.0.1:2",
        1,
    )


def test_the_names_of_the_stigmer_services_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORAL_SERVICE_ADDRESS", "temporal:7233")
    monkeypatch.setenv("STIGMER_API_KEY", "secret")

    settings = load()

    assert settings.temporal_address == "temporal:7233"
    assert settings.key == "secret" and "secret" not in repr(settings)


def test_a_value_can_come_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from a file\n")
    monkeypatch.setenv("AGENT_RUNNER_API_KEY_FILE", str(tmp_path / "key"))

    assert load().key == "from a file"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("AGENT_RUNNER_LISTN", "x", "Did you mean AGENT_RUNNER_LISTEN"),
        ("AGENT_RUNNER_LISTEN", "nowhere", "must be host:port"),
        ("AGENT_RUNNER_LISTEN", "0.0.0.0:7234", "--insecure"),
        ("AGENT_RUNNER_CONCURRENCY", "0", "AGENT_RUNNER_CONCURRENCY"),
        ("AGENT_RUNNER_API_KEY_FILE", "/no/such/file", "cannot be read"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=re.escape(says)):
        load()


def test_a_misspelt_name_in_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "agent-runner.toml").write_text('modle = "x"\n')

    with pytest.raises(SettingsError, match="Did you mean 'model'"):
        load()


def test_listening_anywhere_is_allowed_with_a_key_or_when_insisted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(listen="0.0.0.0:7234", insecure=True).insecure
    monkeypatch.setenv("AGENT_RUNNER_API_KEY", "k")
    assert load(listen="0.0.0.0:7234").key == "k"


def test_the_reference_describes_every_setting() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    for name in known_variables():
        assert f"`{name}`" in text, f"{name} is missing; run `make docs`"
    for field in Settings.model_fields.values():
        assert field.description and field.description in text
    assert PREFIX in text
