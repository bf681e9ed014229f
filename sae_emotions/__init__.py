"""Find which features of a language model carry which concepts, and whether they cause anything.

Everything is imported when it is first used: this module alone costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_emotions.causal.ablate import ablate
    from sae_emotions.config import RunConfig, load_config
    from sae_emotions.dictionary.train import train
    from sae_emotions.errors import UserError
    from sae_emotions.harvest.harvest import harvest
    from sae_emotions.label.label import label
    from sae_emotions.lookup import open
    from sae_emotions.report.report import report
    from sae_emotions.run import run

_WHERE = {
    "RunConfig": "config",
    "UserError": "errors",
    "ablate": "causal.ablate",
    "harvest": "harvest.harvest",
    "label": "label.label",
    "load_config": "config",
    "open": "lookup",
    "report": "report.report",
    "run": "run",
    "train": "dictionary.train",
}

__all__ = ["RunConfig", "UserError", "ablate", "harvest", "label", "load_config", "open", "report", "run", "train"]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sae_emotions' has no attribute '{name}'")
    return getattr(import_module(f"sae_emotions.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
