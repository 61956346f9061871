"""Watchers only say "look at this"; what is there and whether it is wanted is decided elsewhere."""
