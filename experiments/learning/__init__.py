"""Do agents of other libraries learn in the environments? What `reelgym agents` is made of."""
