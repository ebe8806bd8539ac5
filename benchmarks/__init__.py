"""Measurements that anyone can run: each opens with the command."""
