"""The environments: clips that grow chunk by chunk, the world, and what other libraries expect of them."""
