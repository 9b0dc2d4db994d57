"""What runs remotely: copied verbatim into the bundle; imports nothing of the launcher."""
