"""A GGUF file as a base model: configuration, tokenizer and weights as transformers has them."""
