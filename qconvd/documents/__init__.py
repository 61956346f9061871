"""What is told of a daemon as JSON data, from its ledger and the files beside it.

The API answers with these documents (web/answers.py describes them), and the command line prints what they hold, whether it
asked a daemon for them or made them itself: so both say the same.
"""
