"""What tests share: the oracle, the budget, models, ways of training."""
