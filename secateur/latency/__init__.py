"""What a program will cost on a target: its operations timed there at several widths, and predictions from that table."""
