"""The oracle, the truth in float64, and the budget by which both are compared with ours."""
