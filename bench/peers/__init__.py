"""The ways of the textbook on real servers."""
