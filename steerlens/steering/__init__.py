"""Steering: operations on the residual stream, the tokens they touch, a steering in every row."""
