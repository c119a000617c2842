"""PyTorch on several machines: each worker has a part of every batch, and gloo adds up the gradients.

    wherry train --image … --preprocessing ../quickstart-network/preprocessing.py --algorithm torch_workers.py \
        --dataset digits --distributed ps=0,workers=2

PyTorch finds the others by `MASTER_ADDR`, `MASTER_PORT`, `RANK` and `WORLD_SIZE`, which are set.
"""

from pathlib import Path

import torch
from torch import distributed, nn


def train(data: tuple, params: dict, outputs: Path) -> dict:
    """Fit and evaluate; every worker comes to the same weights, and the first one's model is kept."""
    distributed.init_process_group("gloo")
    rank, workers = distributed.get_rank(), distributed.get_world_size()
    print(f"worker {rank} of {workers}", flush=True)
    (images, digits), (test_images, test_digits) = [
        (torch.tensor(one, dtype=torch.float32), torch.tensor(labels)) for one, labels in data
    ]
    torch.manual_seed(int(params.get("seed", 0)))
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    optimizer, judge = torch.optim.Adam(model.parameters(), lr=0.005), nn.CrossEntropyLoss()
    batch, epochs, losses = int(params.get("batch", 64)), int(params.get("epochs", 10)), []
    for epoch in range(epochs):
        order, total, steps = torch.randperm(len(images)), torch.zeros(1), 0
        for start in range(0, len(order) - batch + 1, batch):
            own = order[start : start + batch][rank::workers]
            optimizer.zero_grad()
            loss = judge(model(images[own]), digits[own])
            loss.backward()
            optimizer.step()
            total, steps = total + loss.detach(), steps + 1
        distributed.all_reduce(total)
        losses.append(float(total) / steps / workers)
        print(f"::progress {(epoch + 1) / epochs:.3f}::epoch {epoch + 1} of {epochs}", flush=True)
    with torch.no_grad():
        accuracy = float((model(test_images).argmax(1) == test_digits).float().mean())
    torch.save(model.module.state_dict(), outputs / "model.pt")
    distributed.destroy_process_group()
    return {"loss": losses, "test_accuracy": accuracy, "workers": workers}
