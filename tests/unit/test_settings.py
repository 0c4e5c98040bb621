from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent_runner.adapters.sandbox.docker import DEFAULT_IMAGE
from agent_runner.errors import SettingsError
from agent_runner.settings import PREFIX, known_settings, known_variables, load

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
        ("AGENT_RUNNER_LISTEN", "127.0.0.1:65536", "must be host:port, such as 127.0.0.1:7234, not"),
        ("AGENT_RUNNER_LISTEN", "off", "must be host:port"),
        ("AGENT_RUNNER_LISTEN", "0.0.0.0:7234", "--insecure"),
        ("AGENT_RUNNER_WEB_LISTEN", "none", "must be host:port, such as 127.0.0.1:7235, or off, not 'none'"),
        ("AGENT_RUNNER_CONCURRENCY", "0", "AGENT_RUNNER_CONCURRENCY: must be a whole number from 1, not '0'"),
        ("AGENT_RUNNER_CONCURRENCY", "many", "must be a whole number from 1, not 'many'"),
        ("TEMPORAL_MAX_CONCURRENCY", "1.5", "TEMPORAL_MAX_CONCURRENCY: must be a whole number"),
        ("AGENT_RUNNER_SKILL_ENTRIES", "60001", "must be a whole number from 1 to 60000"),
        ("AGENT_RUNNER_HEARTBEAT_TIMEOUT_SECONDS", "nan", "must be a number from 1 to 86400, not 'nan'"),
        ("AGENT_RUNNER_HEARTBEAT_TIMEOUT_SECONDS", "inf", "must be a number from 1 to 86400, not 'inf'"),
        (
            "AGENT_RUNNER_EXECUTION_TIMEOUT_SECONDS",
            "1" + "0" * 14,
            "must be a whole number from 1 to 315360000, not '100000000000000'",
        ),
        ("AGENT_RUNNER_SANDBOX_IDLE_SECONDS", "315360001", "must be a whole number from 1 to 315360000"),
        ("AGENT_RUNNER_RETENTION_DAYS", "1000000", "must be a whole number from 0 to 3650"),
        ("AGENT_RUNNER_COMPACT_AFTER_MINUTES", "5256001", "must be a whole number from 0 to 5256000"),
        ("AGENT_RUNNER_CHECKPOINTS_KEPT", "-1", "must be a whole number from 0, not '-1'"),
        ("AGENT_RUNNER_ENGINE", "steam", "must be deepagents or graphton, not 'steam'"),
        ("AGENT_RUNNER_INSECURE", "perhaps", "must be true or false"),
        ("AGENT_RUNNER_API_KEY_FILE", "/no/such/file", "cannot be read"),
        (
            "AGENT_RUNNER_DATABASE",
            "postgres://h/db",
            "AGENT_RUNNER_DATABASE: must begin with mongodb:// or mongodb+srv://; unset it for the SQLite",
        ),
        ("AGENT_RUNNER_ANNOUNCEMENTS", "localhost:6379", "must begin with redis:// or rediss://; unset it"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=re.escape(says)):
        load()


def test_values_become_what_they_are_declared_as(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGENT_RUNNER_INSECURE", "Yes")
    monkeypatch.setenv("AGENT_RUNNER_LOG_LEVEL", "WARNING")
    monkeypatch.setenv("AGENT_RUNNER_DATA_DIR", "~/data")
    (tmp_path / "agent-runner.toml").write_text(
        "concurrency = 7\nheartbeat_timeout_seconds = 2\nfull_workflow_argument = true\n"
    )

    settings = load()

    assert (settings.insecure, settings.log_level, settings.data_dir) == (True, "warning", tmp_path / "data")
    assert (settings.concurrency, settings.full_workflow_argument) == (7, True)
    assert settings.heartbeat_timeout.total_seconds() == 2
    assert settings.given == {
        "insecure",
        "log_level",
        "data_dir",
        "concurrency",
        "heartbeat_timeout_seconds",
        "full_workflow_argument",
    }


@pytest.mark.parametrize(
    ("said", "meant"),
    [("on", True), ("Y", True), ("1", True), (" true ", True), ("off", False), ("No", False)],
)
def test_yes_and_no_are_taken_as_people_say_them(
    monkeypatch: pytest.MonkeyPatch, said: str, meant: bool
) -> None:
    monkeypatch.setenv("AGENT_RUNNER_FULL_WORKFLOW_ARGUMENT", said)

    assert load().full_workflow_argument is meant


def test_free_text_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_RUNNER_ORG", " Yes ")
    monkeypatch.setenv("AGENT_RUNNER_API_KEY", "007")
    monkeypatch.setenv("AGENT_RUNNER_LISTEN", "LOCALHOST:65535")
    monkeypatch.setenv("AGENT_RUNNER_WEB_LISTEN", "[::1]:0")

    settings = load()

    assert (settings.org, settings.key) == (" Yes ", "007")
    assert (settings.listen, settings.web_listen) == ("LOCALHOST:65535", "[::1]:0")


def test_the_first_of_several_names_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STIGMER_API_KEY", "third")
    monkeypatch.setenv("AGENT_RUNNER_TOKEN", "second")
    assert load().key == "second"
    monkeypatch.setenv("AGENT_RUNNER_API_KEY", "first")
    assert load().key == "first"


def test_all_that_is_wrong_is_told_and_never_a_key(tmp_path: Path) -> None:
    (tmp_path / "agent-runner.toml").write_text("concurrency = true\norg = 5\napi_key = 1234567\n")

    with pytest.raises(SettingsError) as told:
        load()

    for name in ("concurrency", "org", "api_key"):
        assert f"{name} in {tmp_path / 'agent-runner.toml'}: must be" in str(told.value)
    assert "1234567" not in str(told.value)


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "agent-runner.toml").write_text("org = \n")

    with pytest.raises(SettingsError, match=r"agent-runner\.toml cannot be read"):
        load()


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "agent-runner.toml").write_text('org = "team"\n')
    usual = load()
    for entry in known_settings().values():
        for name in entry.variables:
            monkeypatch.setenv(name, "")

    assert load() == usual
    assert usual.org == "team"


def test_an_empty_key_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_RUNNER_API_KEY", "")

    with pytest.raises(SettingsError, match="--insecure"):
        load(listen="0.0.0.0:7234")


def test_a_misspelt_name_in_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "agent-runner.toml").write_text('modle = "x"\n')

    with pytest.raises(SettingsError, match="Did you mean model"):
        load()


def test_listening_anywhere_is_allowed_with_a_key_or_when_insisted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(listen="0.0.0.0:7234", insecure=True).insecure
    monkeypatch.setenv("AGENT_RUNNER_API_KEY", "k")
    assert load(listen="0.0.0.0:7234").key == "k"


def test_the_reference_describes_every_setting() -> None:
    text = REFERENCE.read_text(encoding="utf-8")
    for name in known_variables():
        assert f"`{name}`" in text, f"{name} is missing; run `make docs`"
    for entry in known_settings().values():
        assert entry.description and entry.description in text
    assert PREFIX in text


def test_the_image_named_is_the_one_containers_get_without_a_word() -> None:
    assert load().sandbox_image == DEFAULT_IMAGE


def test_a_home_of_nobody_is_a_wrong_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_RUNNER_DATA_DIR", "~nobody-of-this-name/data")
    with pytest.raises(SettingsError, match="AGENT_RUNNER_DATA_DIR: must be a path, not '~nobody"):
        load()
