"""What studies measure alike: time to a target, the search of a learning rate."""
