"""The report's part on a task of prompts with answers."""
