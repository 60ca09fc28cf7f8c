"""What happens to an account until its end."""
