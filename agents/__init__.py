"""Who acts and learns: RL fine-tuning of the generator, its guard, and agents of other libraries."""
