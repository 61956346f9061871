"""News as a mail, handed to the machine's own mail program (sendmail's command line: `sendmail -i ADDRESS…`)."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import default
from email.utils import format_datetime, make_msgid

from qconvd.config.notify import MailNotifier
from qconvd.notifications import program
from qconvd.notifications.attempt import BreakOff, NotSent
from qconvd.notifications.command import cleaned
from qconvd.notifications.news import News, one_line

FIX = "install a program that sends mail (msmtp-mta, postfix), or name it in `sendmail:`"
LASTING = {64, 65, 67, 77}
"""Of sysexits.h: a wrong command line, wrong data, an address that nobody has, no permission."""


def send(notifier: MailNotifier, news: News, stop: BreakOff) -> str:
    """Hand it over; returns what happened. Raises `NotSent`."""
    words = [str(notifier.sendmail), "-i", *notifier.to]
    ended = program.run(words, bytes(message(notifier, news)), cleaned(os.environ), notifier.timeout, stop, FIX)
    if ended.code:
        said = f": {one_line(ended.said)}" if ended.said else ""
        raise NotSent(f"{notifier.sendmail} failed (exit code {ended.code}){said}", again=ended.code not in LASTING,
                      fix="its own log says more; `sendmail -v` shows what it does")  # fmt: skip
    return f"handed to {notifier.sendmail.name}"


def message(notifier: MailNotifier, news: News) -> EmailMessage:
    """The mail. Headers are one line, whatever a model is called (EmailMessage would refuse others, and nothing be told)."""
    mail = EmailMessage(policy=default.clone(cte_type="7bit"))  # not every way takes eight bits
    if notifier.from_:
        mail["From"] = notifier.from_
    mail["To"] = ", ".join(notifier.to)
    mail["Subject"] = one_line(news["title"])
    mail["Date"] = format_datetime(datetime.fromtimestamp(news["at"], UTC))
    mail["Message-ID"] = make_msgid(domain=socket.gethostname() or "localhost")
    mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no answers from who is on holiday
    mail["X-Qconvd-Event"] = news["event"]
    body = "\n".join(filter(None, [one_line(news["title"]), news["text"], places(news), f"\n-- \nqconvd on {news['host']}"]))
    mail.set_content("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in body) + "\n")
    return mail


def places(news: News) -> str:
    """Where the artifacts lie, a line each."""
    found = [f"  {artifact['label']}: {artifact['place']}" for artifact in news["artifacts"] if artifact["place"]]
    return "\n".join(["", "Where:", *found]) if found else ""
