"""Each stage as one function call: a config, a run folder, and for most the name of a dictionary.

    from sae_emotions import load_config, stages
    stages.harvest(config, run)

A stage reads the folders of the stages before it, writes its own beside and renames it into place. These functions do
not look at run.json: `sae_emotions.run` and the command line do, and skip what is done.
"""

from pathlib import Path

from sae_emotions.config import RunConfig


def harvest(config: RunConfig, run: str | Path) -> Path:
    """Residual streams of the general text and the concept texts, into RUN/activations. Resumes shard by shard."""
    from sae_emotions.harvest.harvest import harvest as work

    return work(config, Path(run))


def train(config: RunConfig, run: str | Path, name: str) -> Path:
    """Dictionary `name`, trained or loaded, into RUN/dictionaries/<name>. Resumes from its last checkpoint."""
    from sae_emotions.dictionary.train import train as work

    return work(config, Path(run), name)


def label(config: RunConfig, run: str | Path, name: str) -> Path:
    """Features of dictionary `name` matched with the concepts, held out and against a null, into RUN/labels/<name>."""
    from sae_emotions.label.label import label as work

    return work(config, Path(run), name)


def ablate(config: RunConfig, run: str | Path, name: str) -> Path:
    """What removing the labelled features of dictionary `name` changes, into RUN/causal/<name>."""
    from sae_emotions.causal.ablate import ablate as work

    return work(config, Path(run), name)


def report(config: RunConfig, run: str | Path) -> Path:
    """RUN/report.html and RUN/summary.json; returns the page's path."""
    from sae_emotions.report.report import report as work

    return work(config, Path(run))
