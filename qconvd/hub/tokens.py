"""Tokens for the Hub: read where they are used, and written nowhere.

In the order in which they count: the file that `hub.token_file` names, `$HF_TOKEN`, systemd's credential `hf-token`
(`LoadCredential=hf-token:/etc/qconvd/hf-token`), and what `hf auth login` has left. A token is read again each time, so a new
one counts without a restart; what goes into specs, the ledger and the log is where it came from, never what it is.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from qconvd.errors import HubRefused

CREDENTIAL = "hf-token"
WEBHOOK_CREDENTIAL = "webhook-secret"
WEB_CREDENTIAL = "web-token"
WEBHOOK_VARIABLE = "QCONVD_WEBHOOK_SECRET"
LIMIT = 4096
"""Bytes of a token's file; a longer one is some other file."""
THE_TOKEN, THE_SECRET, THE_PAGE = "the Hub's token", "the webhooks' secret", "the status page's token"
_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{3,}")


@dataclass(frozen=True, slots=True)
class Token:
    """A secret and where it was found. Printing one shows the place only."""

    value: str = field(repr=False)
    source: str

    def __str__(self) -> str:
        return f"the token from {self.source}"

    @property
    def fingerprint(self) -> str:
        """Tells one token from another; nobody can get from it to the token."""
        return hashlib.sha256(b"qconvd\0" + self.value.encode()).hexdigest()[:16]


def hub_token(file: Path | None = None) -> Token | None:
    """The token to use, None if there is none. Raises `HubRefused` if a file that is named cannot be read or is empty."""
    found = _hub_token(file)
    if found is not None and not re.fullmatch(r"[!-~]+", found.value):
        # Nothing else can stand in a header, and whoever refuses it there prints it.
        fix = "a token is one word of plain letters and digits: copy it again"
        raise HubRefused("is no token of the Hub", where=found.source, fix=fix)
    return found


def _hub_token(file: Path | None) -> Token | None:
    if file is not None:
        return Token(_read(file, THE_TOKEN), str(file))
    if value := os.environ.get("HF_TOKEN", "").strip():
        return Token(value, "$HF_TOKEN")
    if (credential := _credential(CREDENTIAL)) is not None:
        return Token(_read(credential, THE_TOKEN), f"the credential {CREDENTIAL}")
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    login = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    return Token(_read(login, THE_TOKEN), str(login)) if _readable(login) else None


def webhook_secret(file: Path | None = None) -> Token | None:
    """What the Hub's webhooks must bring in `X-Webhook-Secret`: from a file, `$QCONVD_WEBHOOK_SECRET` or a credential."""
    if file is not None:
        return Token(_read(file, THE_SECRET), str(file))
    if value := os.environ.get(WEBHOOK_VARIABLE, "").strip():
        return Token(value, f"${WEBHOOK_VARIABLE}")
    if (credential := _credential(WEBHOOK_CREDENTIAL)) is not None:
        return Token(_read(credential, THE_SECRET), f"the credential {WEBHOOK_CREDENTIAL}")
    return None


def web_token(file: Path | None = None) -> Token | None:
    """What clients of the HTTP port must bring: from a file or a credential. None if neither is there."""
    if file is not None:
        return Token(_read(file, THE_PAGE), str(file))
    if (credential := _credential(WEB_CREDENTIAL)) is not None:
        return Token(_read(credential, THE_PAGE), f"the credential {WEB_CREDENTIAL}")
    return None


def looks_like_token(text: str) -> bool:
    """Whether somebody wrote a token where a file's name should be."""
    return bool(_TOKEN.fullmatch(text.strip()))


def redacted(text: str, *tokens: Token | None) -> str:
    """A text fit for the log: whatever looks like a token, or is one of these, is taken out."""
    for token in tokens:
        if token is not None:
            text = text.replace(token.value, "(token)")
    return _TOKEN.sub(r"\1_(token)", text)


def _credential(name: str) -> Path | None:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(folder) / name if folder else None
    return path if path is not None and path.is_file() else None


def _readable(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size > 0 and os.access(path, os.R_OK)
    except OSError:
        return False


def _read(path: Path, what: str) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(LIMIT + 1).decode().strip()
    except OSError as error:
        fix = "make the file readable for the user that runs qconvd, and for nobody else (chmod 600)"
        raise HubRefused(f"{what} cannot be read from {path}: {os.strerror(error.errno or 0)}", fix=fix) from error
    except UnicodeDecodeError:
        text = ""
    if not text or len(text) > LIMIT or "\n" in text:
        raise HubRefused(f"{path} does not hold {what}", fix="the file must hold it in one line, and nothing else")
    return text
