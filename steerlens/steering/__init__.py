"""Operations on the residual stream, the tokens they touch, a different steering in every row."""
