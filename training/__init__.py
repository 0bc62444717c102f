"""What every trainer has: a learner, one loop, compute usage, checkpoints, a guard, sequences of recipes."""
