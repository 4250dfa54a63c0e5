"""What sets two models apart."""
