"""Tasks (prompts with a right and a wrong answer), their metrics, and direct logit attribution."""
