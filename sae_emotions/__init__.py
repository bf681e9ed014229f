"""Find which features of a language model carry which concepts, and whether they cause anything.

Everything is imported when it is first used: this module alone costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_emotions import stages
    from sae_emotions.config import RunConfig, load_config
    from sae_emotions.errors import UserError
    from sae_emotions.lookup.run import open
    from sae_emotions.pipeline import run
    from sae_emotions.steering.steer import steer

_WHERE = {
    "RunConfig": "config",
    "UserError": "errors",
    "load_config": "config",
    "open": "lookup.run",
    "run": "pipeline",
    "steer": "steering.steer",
}

__all__ = ["RunConfig", "UserError", "load_config", "open", "run", "stages", "steer"]


def __getattr__(name: str) -> Any:
    if name == "stages":
        return import_module("sae_emotions.stages")
    if name in _WHERE:
        return getattr(import_module(f"sae_emotions.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'sae_emotions' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
