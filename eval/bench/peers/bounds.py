"""What this machine can do, as a worker among the others: `lb2` takes the products that a sparse step cannot avoid without a
screen (encoder forward, one dense encoder gradient, sparse decode, all float32).
"""

import torch
import torch.nn.functional as F
from common import Settings, batches, mean, obey, settings


def lb2(task: Settings) -> None:
    """Serve the bound as if it were a step."""
    width = len(mean(task))
    with torch.device(task.device):
        W_MD, b_M = torch.randn(task.d_sae, width) / width**0.5, torch.zeros(task.d_sae)
        grad_BM = torch.zeros(task.batch, task.d_sae)
        index_BK = torch.randint(0, task.d_sae, (task.batch, task.k))
        value_BK = torch.rand(task.batch, task.k)

    def step(x_BD: torch.Tensor) -> None:
        F.linear(x_BD, W_MD, b_M)
        torch.mm(grad_BM.t(), x_BD)
        F.embedding_bag(index_BK, W_MD, per_sample_weights=value_BK, mode="sum")

    with torch.inference_mode():
        obey(batches(task), task.device, step, dict)


if __name__ == "__main__":
    lb2(settings())
