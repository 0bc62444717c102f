"""StreamReward: scores, reliability and perplexity of windows, from any reward model."""
