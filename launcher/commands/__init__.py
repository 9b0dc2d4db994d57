"""The verbs of `launch`, a thin file each."""
