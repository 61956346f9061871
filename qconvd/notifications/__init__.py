"""What people are told who do not look: news of jobs and of the daemon, by webhooks, mail and commands.

jobs.py       the ledger's history → jobs that are over
news.py       a job that is over → a title, a text, and the same as data
reporter.py   the daemon's turn: news into the ledger's outbox, events to plugins
sender.py     a thread of its own: from the outbox through a notifier, again and again if need be
webhook.py, mail.py, command.py    the notifiers
"""
