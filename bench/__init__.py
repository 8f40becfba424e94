"""Load and measurement. Knows the engine's and HTTP's public face only."""
