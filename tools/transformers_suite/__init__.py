"""transformers' own tests of its models, with sparse models in them."""
