"""The main job as a list of stages, and what they share."""
