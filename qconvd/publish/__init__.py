"""From a verified artifact to where people find it: a folder, a repository of the Hub, and the card that describes it."""
