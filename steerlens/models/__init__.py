"""Models: a reference becomes a hooked language model, and text becomes what it reads."""
