"""The life of an account: from sign-up to deactivation, and back."""
