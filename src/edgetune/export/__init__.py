"""GGUF files: written, proved equal to their model, run, chatted with and served through llama.cpp."""
