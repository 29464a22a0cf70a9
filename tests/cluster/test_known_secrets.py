"""Secrets are known by the names of variables, by their form, and by their value."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import known_secrets
from cluster.known_secrets import STRUCK, form_of_key, held_in, looks_secret, remember, struck


@pytest.mark.parametrize(
    "name",
    [
        *("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN", "DB_PASSWD", "GITHUB_PAT", "PGPASSWORD", "MYSQL_PWD"),
        *("OPENAI_APIKEY", "APIKEY", "MYSECRET", "dbPassword", "client-secret", "SSH_PASSPHRASE", "GPG_PRIVATEKEY"),
        *("SENTRY_DSN", "SLACK_WEBHOOK", "SLACK_WEBHOOK_URL", "SESSION_COOKIE", "HTTP_AUTHORIZATION", "REGISTRY_AUTH"),
        *("GITHUB_TOKENS", "REFRESHTOKEN", "HTTP_AUTH_HEADER"),
        *("AUTHTOKEN", "BEARER", "MY_CREDS", "GOOGLE_CREDENTIALS", "API_KEYS", "DB_PW", "AZURE_SAS", "NPM_JWT"),
    ],
)
def test_names_that_say_so(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "MONKEY", "COMPASS", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "RAY_AUTH_MODE", "PIN_MEMORY", "AUTHOR"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "GIT_CONFIG_KEY_0", "AWS_CONTAINER_CREDENTIALS_FULL_URI", "max_new_tokens"),
        *("AWS_SHARED_CREDENTIALS_FILE", "SSH_KEY_PATH", "SECRET_NAME", "KEYBOARD", "PASSES", "tokens_per_s"),
    ],
)
def test_names_that_do_not(name: str) -> None:
    assert not looks_secret(name)


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "id: AKIA" + "ABCDEFGHIJKLMNOP",
        "ghp_" + "a1" * 18,
        "token: hf_" + "aB" * 17,
        "xoxb-" + "1234567890-abcdefghij",
        "sk-" + "a" * 40,
        "postgres://manta:hunter2@db/manta",
        "eyJhbGciOi" + "J9.eyJzdWIiOiIx" + "In0.c2lnbmF0dXJl",
        "Authorization: Bearer " + "abcdefghijklmnopqrst",
    ],
)
def test_forms_of_keys(text: str) -> None:
    assert form_of_key(f"some text {text} and more") is not None


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/a:b@c",
        "https://me@example.com/",
        "s3://bucket/prefix",
        "postgres://manta:${PASSWORD}@db",
        "the bearer of good news",
        "sha256:" + "a" * 64,
        "task-2024-01-01-some-long-name-of-a-run-in-a-folder",
    ],
)
def test_other_text_has_none(text: str) -> None:
    assert form_of_key(text) is None


def test_examples_in_source_files_are_no_keys() -> None:
    for text in ("postgres://user:password@localhost/x", "Authorization: Bearer YOUR_ACCESS_TOKEN_HERE"):
        assert form_of_key(text) and not form_of_key(text, in_source=True)
    assert form_of_key("id: AKIA" + "ABCDEFGHIJKLMNOP", in_source=True)


TEXT = st.text(st.characters(codec="ascii", exclude_categories=("L", "N")))


@given(st.text(string.ascii_letters + string.digits + "/+", min_size=8, max_size=60), TEXT, TEXT)
def test_values_are_struck_wherever_they_stand(rest: str, before: str, after: str) -> None:
    secret = f"A{rest}9"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_secrets, "_given", set())
        patch.setattr("os.environ", {"MY_TOKEN": secret})
        assert struck(f"{before}{secret}{after}") == f"{before}{STRUCK}{after}"
        assert held_in(f"{before}{secret}{after}") == ["MY_TOKEN"]


def test_what_is_no_secret_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {
        "PWD": "/work/folder",
        "SHORT_KEY": "abc",
        "SSH_KEY": "/root/.ssh/id_rsa",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "DB_PASSWORD": "training",
        "GOOGLE_APPLICATION_CREDENTIALS": "/home/me/key.json",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1/credentials",
        "HTTPS_PROXY": "http://me:hush-hush-1@proxy:3128",
        "BUILD_TOKEN": "Abcdefg1",
    }
    monkeypatch.setattr(known_secrets, "_given", set())
    monkeypatch.setattr("os.environ", held)
    text = " ".join(value for name, value in held.items() if name not in ("HTTPS_PROXY", "BUILD_TOKEN"))
    assert struck(text) == text and held_in(text) == []
    assert struck("xAbcdefg12 stays") == "xAbcdefg12 stays"
    assert struck(held["HTTPS_PROXY"]) == f"http://me:{STRUCK}@proxy:3128"
    assert held_in(held["HTTPS_PROXY"]) == ["HTTPS_PROXY"]


def test_a_recipes_keys_are_struck_once_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_secrets, "_given", set())
    remember(["planted-key-1", None, "short"])
    assert struck("a planted-key-1, short") == f"a {STRUCK}, short"


@pytest.mark.parametrize("text", ["\n" * 300_000, "a." * 300_000, " \n" * 300_000, "secret_access_key" * 30_000])
def test_long_texts_of_one_kind_take_no_time_that_grows_with_their_square(text: str) -> None:
    """Each would take hours."""
    assert form_of_key(text) is None


def test_a_stores_key_is_found_where_it_stands_in_a_recipe() -> None:
    for text in ("store:\n\n  secret_access_key: abcdefgh12\n", "secret_access_key:\n  abcdefgh12"):
        assert form_of_key(text) == "a secret key of a store"
