"""The range test: a learning rate and a perturbation radius for a model and its data."""
