"""Secrets are known by the names of variables, by their form, and by their value."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import known_secrets
from cluster.known_secrets import STRUCK, form_of_key, looks_secret, remember, struck


@pytest.mark.parametrize(
    "name",
    [
        *("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN", "DB_PASSWD", "GITHUB_PAT", "PGPASSWORD", "MYSQL_PWD"),
        *("OPENAI_APIKEY", "APIKEY", "MYSECRET", "dbPassword", "client-secret", "SSH_PASSPHRASE", "GPG_PRIVATEKEY"),
        *("SENTRY_DSN", "SLACK_WEBHOOK", "SLACK_WEBHOOK_URL", "SESSION_COOKIE", "HTTP_AUTHORIZATION", "REGISTRY_AUTH"),
        *("AUTHTOKEN", "BEARER", "MY_CREDS", "GOOGLE_CREDENTIALS", "API_KEYS", "DB_PW", "AZURE_SAS", "NPM_JWT"),
    ],
)
def test_names_that_say_so(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        *("PATH", "MONKEY", "COMPASS", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "RAY_AUTH_MODE", "PIN_MEMORY", "AUTHOR"),
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


@given(st.text(string.ascii_letters + string.digits + "/+", min_size=8, max_size=60), st.text(), st.text())
def test_values_are_struck_wherever_they_stand(secret: str, before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_secrets, "_given", set())
        patch.setattr("os.environ", {"MY_TOKEN": secret, "PWD": "/work/folder", "SHORT_KEY": "abc"})
        assert secret not in struck(f"{before}{secret}{after}").replace(STRUCK, "")
        assert struck("/work/folder abc") == "/work/folder abc"


def test_a_recipes_keys_are_struck_once_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_secrets, "_given", set())
    remember(["planted-key-1", None, "short"])
    assert struck("a planted-key-1, short") == f"a {STRUCK}, short"
