"""Several recipes trained on the same data and measured alike: one table with standard errors, one plot."""
