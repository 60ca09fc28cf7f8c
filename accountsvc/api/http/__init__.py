"""The wire's plumbing, so that the API's other modules show its resources alone."""
