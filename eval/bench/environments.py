"""One environment a peer, made once and kept: libraries that cannot share one still get the same torch."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from sae_emotions.progress import say
from sae_emotions.sources.wheels import cache_folder

PEERS = {
    # The nnsight that it needs cannot be imported beside a newer transformers.
    "dictionary_learning": ("dictionary-learning==0.1.0", "transformers<4.57", "datasets<4"),
    "sparsify": ("eai-sparsify==1.3.3",),
}
"""SAELens needs none: it is what this package itself trains with."""


def interpreter(library: str) -> str:
    """The Python that runs a library, its environment made where it is missing. Raises CalledProcessError where pip fails."""
    if library not in PEERS:
        return sys.executable
    torch = version("torch").split("+")[0]
    folder = cache_folder() / "bench" / f"{library}-torch{torch}"
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = [*PEERS[library], f"torch=={torch}", "numpy>=1.26"]
    if not stamp.is_file() or stamp.read_text(encoding="utf-8").splitlines() != wanted:
        say(f"Making an environment for {', '.join(PEERS[library])} (some minutes, once).")
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *wanted], check=True, env=alone)
        # nnsight asks for torchvision, which stops transformers where it was built for another torch; no worker uses it.
        subprocess.run([*pip, "uninstall", "--yes", "torchvision"], check=True, env=alone)
        stamp.write_text("\n".join(wanted), encoding="utf-8")
    return str(python)


def script(library: str, what: str) -> Path:
    """The worker that drives a library: `what` is train or harvest."""
    # A worker's own folder comes first when it imports: it must not be called like the library.
    names = {"dictionary_learning": "dictionary_learning_", "sparsify": "sparsify_"}
    name = names.get(library, library) if what == "train" else f"{library}_{what}"
    return Path(__file__).parent / "peers" / f"{name}.py"
