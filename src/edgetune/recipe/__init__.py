"""What a person asked for: the recipe, its method, and the model, data and file plan that it comes to."""
