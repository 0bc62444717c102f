"""Speed, as ratios measured in one run: `reelgym bench NAME`."""
