"""Where tokens come from, and that they go nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from qconvd.errors import HubRefused
from qconvd.hub.tokens import hub_token, looks_like_token, redacted, webhook_secret


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("HF_TOKEN", "CREDENTIALS_DIRECTORY", "HF_TOKEN_PATH", "QCONVD_WEBHOOK_SECRET"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def test_the_order_in_which_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub_token() is None
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("hf_login\n")
    assert (token := hub_token()) and token.value == "hf_login"
    (tmp_path / "hf-token").write_text("hf_credential\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert (token := hub_token()) and (token.value, token.source) == ("hf_credential", "the credential hf-token")
    monkeypatch.setenv("HF_TOKEN", " hf_variable ")
    assert (token := hub_token()) and (token.value, token.source) == ("hf_variable", "$HF_TOKEN")
    (tmp_path / "mine").write_text("hf_file")
    assert (token := hub_token(tmp_path / "mine")) and token.value == "hf_file"


def test_a_token_is_never_printed() -> None:
    token = hub_token_of("hf_secret")
    assert "hf_secret" not in f"{token} {token!r} {[token]}"
    assert str(token) == "the token from $HF_TOKEN"
    assert token.fingerprint != hub_token_of("hf_other").fingerprint and "secret" not in token.fingerprint


def hub_token_of(value: str):  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", value)
        token = hub_token()
    assert token is not None
    return token


def test_a_file_that_is_named_must_hold_one(tmp_path: Path) -> None:
    with pytest.raises(HubRefused, match=f"the Hub's token cannot be read from {tmp_path}/none: No such file") as caught:
        hub_token(tmp_path / "none")
    assert "chmod 600" in caught.value.fix
    for content in (b"", b"two\nlines", b"\xff\xfe", b"x" * 5000):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(HubRefused, match=f"{tmp_path}/bad does not hold the Hub's token"):
            hub_token(tmp_path / "bad")


@pytest.mark.parametrize("value", ["hf_abc\ns3cret", "hf_abc s3cret", "hf_s3cret-żółć", "hf_s3cret\x7f"])
def test_what_cannot_stand_in_a_header_is_told_without_printing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", value)
    (tmp_path / "token").write_text(value.replace("\n", " "))
    for file, where in ((None, "$HF_TOKEN"), (tmp_path / "token", f"{tmp_path}/token")):
        with pytest.raises(HubRefused) as caught:
            hub_token(file)
        assert str(caught.value) == (
            f"{where}: is no token of the Hub\n  a token is one word of plain letters and digits: copy it again"
        )


def test_the_secret_of_webhooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert webhook_secret() is None
    with pytest.raises(HubRefused, match=f"the webhooks' secret cannot be read from {tmp_path}/none"):
        webhook_secret(tmp_path / "none")
    (tmp_path / "webhook-secret").write_text("s3cret")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert (secret := webhook_secret()) and secret.value == "s3cret"
    monkeypatch.setenv("QCONVD_WEBHOOK_SECRET", "other")
    assert (secret := webhook_secret()) and secret.value == "other"
    assert (secret := webhook_secret(tmp_path / "webhook-secret")) and secret.value == "s3cret"


def test_what_looks_like_a_token_is_taken_out_of_texts() -> None:
    token = hub_token_of("anything")
    assert redacted("Bearer hf_AbC123 or anything", token) == "Bearer hf_(token) or (token)"
    assert looks_like_token("hf_AbC123") and not looks_like_token("/etc/hf-token") and not looks_like_token("./hf_token.txt")
