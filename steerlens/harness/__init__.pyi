from .language_model import SteeredLM
from .registration import register
from .run import HarnessRun, run_tasks
from .saved import saved_steering

__all__ = ["HarnessRun", "SteeredLM", "register", "run_tasks", "saved_steering"]
