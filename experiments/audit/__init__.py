"""What a reward sees and what fools it: `reelgym audit NAME`."""
