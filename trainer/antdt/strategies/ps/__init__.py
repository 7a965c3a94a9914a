"""Parameter servers: some processes hold the model in parts, workers pull parameters and push gradients."""
