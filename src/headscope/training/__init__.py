"""Training: toy models on tasks with known answers, a small language-model loop, and the demo model's recipe."""

from headscope.training import toy_configs
from headscope.training.demo import train_demo
from headscope.training.demo_figures import DemoFigures, evaluate_demo
from headscope.training.tokenizer import train_tokenizer
from headscope.training.toy import TrainConfig, evaluate_task, log_spaced_steps, train
from headscope.training.toy_checkpoint import load_toy_model, snapshot_steps
from headscope.training.toy_dynamics import TrainingDynamics, training_dynamics
from headscope.training.toy_fourier import fourier_basis, fourier_coefficients, fourier_power
from headscope.training.toy_result import MetricCurve, TrainingResult
from headscope.training.toy_study import head_logits, heads_needed, operand_study, token_circuits
from headscope.training.toy_tasks import ToyTask, toy_task
from headscope.training.trainer import LanguageTrainConfig, OptimizerConfig, TrainHistory, train_language_model

__all__ = [
    "DemoFigures",
    "LanguageTrainConfig",
    "MetricCurve",
    "OptimizerConfig",
    "ToyTask",
    "TrainConfig",
    "TrainHistory",
    "TrainingDynamics",
    "TrainingResult",
    "evaluate_demo",
    "evaluate_task",
    "fourier_basis",
    "fourier_coefficients",
    "fourier_power",
    "head_logits",
    "heads_needed",
    "load_toy_model",
    "log_spaced_steps",
    "operand_study",
    "snapshot_steps",
    "token_circuits",
    "toy_configs",
    "toy_task",
    "train",
    "train_demo",
    "train_language_model",
    "train_tokenizer",
    "training_dynamics",
]
