"""Speed, limits, perplexity: what a machine and a model can do."""
