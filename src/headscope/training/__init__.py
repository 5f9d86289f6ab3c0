"""Training: a small language-model loop, and the recipe of the demo model built on it."""

from headscope.training.demo import train_demo
from headscope.training.demo_figures import DemoFigures, evaluate_demo
from headscope.training.tokenizer import train_tokenizer
from headscope.training.trainer import TrainConfig, TrainHistory, train_language_model

__all__ = [
    "DemoFigures",
    "TrainConfig",
    "TrainHistory",
    "evaluate_demo",
    "train_demo",
    "train_language_model",
    "train_tokenizer",
]
