"""The training data as the launcher sees it: read, check, count."""
