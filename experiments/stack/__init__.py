"""Stacks of one's own in a toml: `reelgym stack NAME`."""
