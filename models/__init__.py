"""Networks and what runs them: codec, causal generator and its cache, sampler, prompts, reward models, critic."""
