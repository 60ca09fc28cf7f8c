"""For machines that ask how everything stands."""
