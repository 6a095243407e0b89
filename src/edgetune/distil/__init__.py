"""Generalised knowledge distillation: a student that learns what a teacher would say, as a loss of any method."""
