"""The answers for machines: is it alive, may it serve, how does it stand."""
