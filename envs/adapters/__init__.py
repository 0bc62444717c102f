"""What other libraries expect of an environment, over TensorVectorEnv: one module for each library."""
