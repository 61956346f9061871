"""The Hugging Face Hub: addresses, tokens, one client for all that is asked of it, and what lies in a repository."""
