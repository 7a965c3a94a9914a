"""Handwritten digits on several workers: a plain PyTorch loop, and antdt's two calls.

antdt up digits                                          # in one terminal
antdt launch --job digits -n 4 examples/train.py         # in another one
antdt audit digits
"""

import antdt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

# The data, the same for every worker. Which of them takes which samples is the Agent's business.
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target, dtype=torch.int64)
train, test = TensorDataset(images[:1500], labels[:1500]), (images[1500:], labels[1500:])

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
    nn.Linear(16 * 4 * 4, 10),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
loss_function = nn.CrossEntropyLoss()

agent = antdt.Agent(model, optimizer, train, batch_size=128, epochs=10)  # samples of all workers in one step
for x, y in agent:
    loss = loss_function(model(x), y)  # the mean over this batch
    agent.step(loss)  # backward, reduce, and the optimizer's step

# Here every sample of every epoch is in the model, on every worker alike.
if agent.settings.rank == 0:
    with torch.no_grad():
        right = (model(test[0]).argmax(1) == test[1]).float().mean().item()
    print(f"accuracy {right:.3f} after {agent.step_number} steps")
