"""The training loop of recovery beside a plain PyTorch loop and beside Lightning's Trainer."""
