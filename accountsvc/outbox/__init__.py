"""Side effects are rows until they have happened."""
