"""Small recorded truths, and what made them."""
